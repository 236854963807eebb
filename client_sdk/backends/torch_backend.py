"""Our own decoder as a back end: always there, trains elsewhere, adapters beside the packed base."""

import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from client_sdk.backends.interface import (
    BackendModel,
    Ending,
    EngineFacts,
    EngineSettings,
    GenerationRequest,
    Piece,
    TokenLogprob,
)
from client_sdk.backends.text import TextStream
from client_sdk.backends.threads import LoadMeter, usable_cores
from client_sdk.errors import DeviceError
from model.inference import Engine, PackedDecoder, Sampling, batch_limit
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from model.inference import NewToken, Precision, RunningSequence

_SMALL_BYTES = 32 * 1024 * 1024
"""Below this, weights stay in the processor's cache: fewer bits would cost accuracy and gain nothing."""


class TorchBackend:
    """One base, packed in memory."""

    def __init__(self, model: BackendModel, settings: EngineSettings) -> None:
        """Read and pack the base, one tensor at a time.

        Raises:
            model.ModelError: the base or an adapter is damaged.
        """
        self._settings = settings
        self._meter = LoadMeter()
        self._threads = settings.threads or self._meter.threads()
        torch.set_num_threads(self._threads)
        precision: Precision = _small_or_int8(model.base) if settings.precision == "auto" else settings.precision
        if settings.cache_dtype == "float16":
            raise DeviceError("The back end torch keeps keys and values in float32 or int8; choose one of them.")
        self._engine = Engine(
            PackedDecoder.from_folder(model.base, precision=precision),
            cache_dtype="int8" if settings.cache_dtype == "int8" else "float32",
            cache_bytes=settings.cache_bytes,
            max_batch=settings.max_batch,
            window=settings.window,
            context=settings.context,
        )
        self._tokenizer = Tokenizer.from_folder(model.base)
        for name, folder in model.adapters.items():
            self._engine.add_adapter(name, folder)

    def stream(self, request: GenerationRequest) -> Iterator[Piece]:
        """Make one answer; closing the iterator stops it."""
        if request.json_schema is not None:
            raise DeviceError("JSON of a schema needs llama.cpp: `pip install lamella[device,llamacpp]`.")
        self._adapt()
        room = request.max_new_tokens
        if self._settings.window is None:
            room = min(room, max(1, self._engine.context - len(request.token_ids)))
        started = time.monotonic()
        sequence = self._engine.start(
            request.token_ids,
            Sampling(
                max_new_tokens=room,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                stop_ids=request.stop_ids,
                logprobs=request.logprobs,
                is_lookup_on=self._settings.is_lookup_on,
            ),
            adapter=request.adapter,
        )
        return self._pieces(request, sequence, started)

    def add_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter known; running answers go on."""
        self._engine.add_adapter(name, folder)

    def renewed(self, adapters: Mapping[str, Path]) -> "TorchBackend":
        """The same packed base with these adapters instead: their factors are all that is read."""
        other = copy.copy(self)
        other._engine = self._engine.renewed()  # noqa: SLF001 - another of this class
        for name, folder in adapters.items():
            other.add_adapter(name, folder)
        return other

    def facts(self) -> EngineFacts:
        """Which engine this is, as it runs now."""
        return EngineFacts(
            backend="torch",
            precision=self._engine.decoder.precision,
            cache_dtype="int8" if self._settings.cache_dtype == "int8" else "float32",
            threads=self._threads,
            context=self._engine.context,
            weight_bytes=self._engine.decoder.num_bytes,
            adapters=self._engine.adapters,
        )

    def close(self) -> None:
        """Nothing runs between calls: the memory goes with this object."""

    def _adapt(self) -> None:
        """Threads and batch for the load of the machine now."""
        if self._settings.threads is None:
            threads = self._meter.threads(self._threads)
            if threads != self._threads:
                self._threads = threads
                torch.set_num_threads(threads)
        self._engine.set_max_batch(
            batch_limit(most=self._settings.max_batch, threads=self._threads, cores=usable_cores())
        )

    def _pieces(self, request: GenerationRequest, sequence: "RunningSequence", started: float) -> Iterator[Piece]:
        text = TextStream(self._tokenizer.decode, request.stop)
        tokens = self._engine.tokens(sequence, adapter=request.adapter)
        first: float | None = None
        count = 0
        try:
            for token in tokens:
                first = first or time.monotonic()
                count += 1
                shown = text.push(token.token_id)
                if shown or token.logprob is not None:
                    yield Piece(shown, self._described(token))
                if text.is_stopped:
                    break
        finally:
            tokens.close()  # type: ignore[attr-defined]  # a generator, as every iterator with a finally is
        now = time.monotonic()
        yield Piece(
            text.finish(),
            ending=Ending(
                reason="stop" if text.is_stopped or sequence.is_stopped else "length",
                prompt_tokens=len(request.token_ids),
                cached_tokens=sequence.cached_tokens,
                new_tokens=count,
                first_token_s=(first or now) - started,
                decode_s=now - (first or now),
                guessed_tokens=sequence.guessed_tokens,
            ),
        )

    def _described(self, token: "NewToken") -> tuple[TokenLogprob, ...]:
        if token.logprob is None:
            return ()
        top = tuple((other, self._tokenizer.decode([other]), value) for other, value in token.top)
        return (TokenLogprob(token.token_id, self._tokenizer.decode([token.token_id]), token.logprob, top),)


def _small_or_int8(base: Path) -> "Precision":
    return "float32" if (base / "model.safetensors").stat().st_size < _SMALL_BYTES else "int8"
