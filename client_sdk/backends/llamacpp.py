"""llama.cpp: its own scheduler, prefix cache, grammars and prompt lookup, on a mapped GGUF file.

It runs in a process of its own (`llamacpp_process.py` says why).
"""

import copy
import importlib.util
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from client_sdk.backends.gguf_files import adapter_file, base_file, keep_only
from client_sdk.backends.interface import (
    BackendModel,
    Ending,
    EngineFacts,
    EngineSettings,
    GenerationRequest,
    Piece,
    TokenLogprob,
)
from client_sdk.backends.llamacpp_server import Chunks, LlamaCppServer
from client_sdk.backends.threads import LoadMeter
from client_sdk.errors import DeviceError, MissingExtraError

_FIRST_CONTEXT = 2048
_QUANTIZATIONS = {
    "auto": "q8_0",
    "int8": "q8_0",
    "int4": "q4_0",
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
}
_CACHE_TYPES = {"auto": "F16", "float16": "F16", "float32": "F32", "int8": "Q8_0"}
_PROBE = (1, 2, 3, 5, 7, 11)
_PROBE_LOGPROBS = 10
_REBUILD_INTERVAL_S = 20.0
_MAX_PARALLEL = 4
# llama.cpp keeps room for the logits of so many tokens: 512, its own choice, take 75 MB more and read no faster here.
_PROMPT_TOKENS_AT_ONCE = 128
# Tokens that must have occurred before, fewest and most that are guessed then. With 24, 48 and 64, its own choice, only
# long quotations gain; shorter runs cost more wrong guesses than they gain.
_LOOKUP = (12, 4, 48)


class LlamaCppBackend:
    """One base, memory-mapped.

    It is opened again, which takes a moment, when an adapter is added, a longer text needs more room, or the load of
    the machine asks for other threads; never while an answer is being made.
    """

    def __init__(self, model: BackendModel, settings: EngineSettings) -> None:
        """Make the files that are missing, and open them.

        Raises:
            MissingExtraError: llama.cpp is not installed.
            DeviceError: the model cannot be expressed as GGUF, or llama.cpp does not load it.
        """
        if not is_installed():
            raise MissingExtraError("llama.cpp needs `pip install lamella[device,llamacpp]`.")
        if model.derived is None:
            raise DeviceError("llama.cpp needs a folder to keep its GGUF file in.")
        if settings.window is not None:
            raise DeviceError("A sliding window needs the back end torch.")
        self._model, self._settings = model, settings
        self._quantization = _QUANTIZATIONS[settings.precision]
        self._file = base_file(model.derived, model.base, model.base_hash, self._quantization)
        self._longest = settings.context or _context_of(model.base)
        self._context = min(_FIRST_CONTEXT, self._longest)
        self._meter = LoadMeter()
        self._threads = settings.threads or self._meter.threads()
        files = {name: self._adapter_file(folder) for name, folder in model.adapters.items()}
        keep_only(model.derived, files.values())
        self._begin(files)

    def _begin(self, adapters: dict[str, Path]) -> None:
        self._adapters = adapters
        self._idle = threading.Condition()
        self._running = 0
        self._server: LlamaCppServer | None = None
        self._known: tuple[str, ...] = ()
        self._open()

    def renewed(self, adapters: Mapping[str, Path]) -> "LlamaCppBackend":
        """A second engine on the same mapped file, with these adapters; what it adds is room for keys and values."""
        files = {name: self._adapter_file(folder) for name, folder in adapters.items()}
        if self._model.derived is not None:
            # This engine may have to be opened again while it still answers.
            keep_only(self._model.derived, {*self._adapters.values(), *files.values()})
        other = copy.copy(self)
        other._begin(files)  # noqa: SLF001 - another of this class
        return other

    def stream(self, request: GenerationRequest) -> Iterator[Piece]:
        """Make one answer; closing the iterator stops it."""
        if request.adapter is not None and request.adapter not in self._adapters:
            raise DeviceError(
                f"No adapter {request.adapter!r} is loaded; there are {', '.join(self._adapters) or '-'}."
            )
        count = len(request.token_ids)
        if count >= self._longest:
            raise DeviceError(
                f"The model cannot do this: the prompt has {count} tokens, the context holds {self._longest}; "
                "shorten it"
            )
        room = min(request.max_new_tokens, self._longest - count)
        with self._idle:
            server, known = self._prepare(count + room + 1), self._known
            self._running += 1
        try:
            yield from _answer(server, self._body(request, room, known), request)
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def add_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter known; llama.cpp is opened again with it once no answer is running.

        Raises:
            DeviceError: it does not fit the base, or changes nothing.
        """
        if self._adapters.get(name) == (path := self._adapter_file(folder)):
            return
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)
            before = self._adapters
            self._adapters = before | {name: path}
            server = self._open()
            if self._probe(server, name) == self._probe(server, None):
                self._adapters = before
                self._open()
                raise DeviceError(f"The adapter {name!r} changes nothing: it was made for another base, or is empty.")

    def facts(self) -> EngineFacts:
        """Which engine this is, as it runs now."""
        return EngineFacts(
            backend="llamacpp",
            precision=self._quantization,
            cache_dtype=_CACHE_TYPES[self._settings.cache_dtype].lower(),
            threads=self._threads,
            context=self._longest,
            weight_bytes=self._file.stat().st_size,
            adapters=tuple(self._adapters),
        )

    def close(self) -> None:
        """Wait for running answers, and give the memory back."""
        with self._idle:
            self._idle.wait_for(lambda: self._running == 0)
            self._shut()

    def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _prepare(self, tokens: int) -> LlamaCppServer:
        """Open again where this request or the machine's load asks for it, and no answer is running."""
        if self._server is None:
            raise DeviceError("This engine was closed.")
        if not self._server.is_alive:
            self._idle.wait_for(lambda: self._running == 0)
            self._open()
        context = self._context
        while context < min(tokens, self._longest):
            context *= 2
        context = min(context, self._longest)
        if context > self._context:
            self._idle.wait_for(lambda: self._running == 0)
            self._context = context
            self._open()
        is_settled = time.monotonic() - self._opened_at > _REBUILD_INTERVAL_S
        if self._settings.threads is None and self._running == 0 and is_settled:
            threads = self._meter.threads(self._threads)
            if threads != self._threads:
                self._threads = threads
                self._open()
        return self._server

    def _open(self) -> LlamaCppServer:
        settings = self._settings
        self._shut()  # the old one's memory goes first
        try:
            server = LlamaCppServer(
                {
                    "model": str(self._file),
                    "context": self._context,
                    "parallel": max(1, min(settings.max_batch, _MAX_PARALLEL)),
                    "tokens_at_once": _PROMPT_TOKENS_AT_ONCE,
                    "threads": self._threads,
                    "cache_type": _CACHE_TYPES[settings.cache_dtype],
                    "lookup": _LOOKUP if settings.is_lookup_on else None,
                    "adapters": [str(path) for path in self._adapters.values()],
                }
            )
        except DeviceError as error:
            raise DeviceError(f"llama.cpp cannot load {self._file.name}: {error}.") from error
        self._server, self._known = server, tuple(self._adapters)
        # One token proves that the file computes something.
        first = GenerationRequest(token_ids=_PROBE[:1], max_new_tokens=1)
        list(_answer(server, self._body(first, 1, self._known), first))
        self._opened_at = time.monotonic()
        return server

    def _adapter_file(self, folder: Path) -> Path:
        if self._model.derived is None:  # pragma: no cover - refused when it was opened
            raise DeviceError("llama.cpp needs a folder to keep its GGUF files in.")
        try:
            return adapter_file(self._model.derived, folder, self._model.base, self._model.base_hash)
        except OSError as error:
            raise DeviceError(f"The adapter in {folder} cannot be read: {error.strerror}.") from error

    def _probe(self, server: LlamaCppServer, adapter: str | None) -> object:
        """Log-probabilities after a fixed prompt."""
        request = GenerationRequest(token_ids=_PROBE, max_new_tokens=1, logprobs=_PROBE_LOGPROBS, adapter=adapter)
        pieces = list(_answer(server, self._body(request, 1, self._known), request))
        return [piece.logprobs for piece in pieces]

    def _body(self, request: GenerationRequest, room: int, known: tuple[str, ...]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": list(request.token_ids),
            "max_tokens": room,
            "stream": True,
            "cache_prompt": True,
            "lora": [{"id": n, "scale": 1.0 if name == request.adapter else 0.0} for n, name in enumerate(known)],
        }
        if request.temperature == 0.0:
            body |= {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
        else:
            body |= {"temperature": request.temperature, "top_p": request.top_p, "min_p": 0.0, "top_k": 0}
            body["samplers"] = ["temperature", "top_p"]
        body["seed"] = secrets.randbits(31) if request.seed is None else request.seed % (1 << 31)
        if request.stop:
            body["stop"] = list(request.stop)
        if request.logprobs is not None:
            body["logprobs"] = max(1, request.logprobs)
        if request.json_schema is not None:
            body["json_schema"] = dict(request.json_schema)
        return body


def is_installed() -> bool:
    """Whether the binding of llama.cpp can be imported; it is not imported here."""
    try:
        return importlib.util.find_spec("xllamacpp") is not None
    except ValueError:
        return False  # somebody took it out of sys.modules


def _context_of(base: Path) -> int:
    from model.config import MAX_CONFIG_BYTES, ModelConfig  # noqa: PLC0415 - no torch in it
    from model.files import read_text  # noqa: PLC0415 - as above

    return ModelConfig.from_json(read_text(base / "config.json", max_bytes=MAX_CONFIG_BYTES)).max_context


def _answer(server: LlamaCppServer, body: Mapping[str, Any], request: GenerationRequest) -> Iterator[Piece]:
    started = time.monotonic()
    with server.asking(body) as chunks:
        yield from _pieces(chunks, request, started)


def _pieces(chunks: Chunks, request: GenerationRequest, started: float) -> Iterator[Piece]:
    first: float | None = None
    reason = "length"
    while (chunk := chunks.get()) is not None:
        if "error" in chunk:
            raise DeviceError(f"The model cannot do this: {chunk['error'].get('message', chunk['error'])}")
        choice = (chunk.get("choices") or [{}])[0]
        first = first or time.monotonic()
        reason = choice.get("finish_reason") or reason
        text, logprobs = choice.get("text") or "", _logprobs(choice.get("logprobs"), request.logprobs)
        if "timings" in chunk:
            yield Piece(text, logprobs, _ending(chunk, reason, first - started))
        elif text or logprobs:
            yield Piece(text, logprobs)


def _ending(chunk: Mapping[str, Any], reason: str, first_token_s: float) -> Ending:
    timings, usage = chunk["timings"], chunk.get("usage", {})
    new = int(usage.get("completion_tokens", timings.get("predicted_n", 0)))
    decode_s = float(timings.get("predicted_ms", 0.0)) / 1000.0
    return Ending(
        reason="stop" if reason == "stop" else "length",
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        cached_tokens=int(timings.get("cache_n", 0)),
        new_tokens=new,
        first_token_s=first_token_s,
        decode_s=decode_s * (new - 1) / new if new > 1 else 0.0,
        guessed_tokens=int(timings.get("draft_n_accepted", 0)),
    )


def _logprobs(found: Mapping[str, Any] | None, wanted: int | None) -> tuple[TokenLogprob, ...]:
    if wanted is None or not found:
        return ()
    return tuple(
        TokenLogprob(
            int(token["id"]),
            str(token["token"]),
            float(token["logprob"]),
            tuple((int(t["id"]), str(t["token"]), float(t["logprob"])) for t in token["top_logprobs"][:wanted]),
        )
        for token in found.get("content", ())
    )
