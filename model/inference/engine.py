"""The decoder as a service for threads: each asks for an answer's tokens; whoever waits drives everybody's steps."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING

from model.errors import AdapterError, ContextLengthError
from model.inference.adapters import PackedAdapter
from model.inference.cache import CacheDtype, SequenceCache, bytes_per_token
from model.inference.decoder import Chunk, PackedDecoder
from model.inference.prefixes import PrefixStore
from model.inference.scheduler import Scheduler
from model.inference.sequence import RunningSequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from model.inference.sequence import NewToken, Sampling

_PROBE = (1, 2)  # with one token alone, attention has nothing to choose from


class Engine:
    """A packed decoder with its adapters, running texts and remembered beginnings. Threads may share it."""

    def __init__(
        self,
        decoder: PackedDecoder,
        *,
        cache_dtype: CacheDtype = "float32",
        cache_bytes: int = 512 * 1024 * 1024,
        max_batch: int = 8,
        window: int | None = None,
        context: int | None = None,
    ) -> None:
        """Begin with nothing running.

        Args:
            decoder: The packed weights.
            cache_dtype: What keys and values are kept in.
            cache_bytes: Most memory for the caches of running and remembered texts together.
            max_batch: Most texts that run side by side.
            window: Attend over this many tokens only; a text may then grow beyond the context.
            context: Most tokens of a text without a window; None is the model's own.
        """
        self.decoder = decoder
        self.context = min(context or decoder.config.max_context, decoder.config.max_context)
        self._cache_dtype: CacheDtype = cache_dtype
        self._window = window
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._plain: Tensor | None = None
        self._begin(max_batch)

    def _begin(self, max_batch: int) -> None:
        self._adapters: dict[str, PackedAdapter] = {}
        self._prefixes = PrefixStore(self._cache_bytes)
        self._scheduler: Scheduler[RunningSequence] = Scheduler(
            self._run, max_batch=max_batch, max_bytes=self._cache_bytes
        )

    def renewed(self) -> Engine:
        """The same decoder without adapters and remembered beginnings; texts that run here run on here.

        The two take turns: a decoder computes one step at a time.
        """
        other = copy.copy(self)
        other._begin(self._scheduler.max_batch)  # noqa: SLF001 - another of this class
        return other

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that requests may ask for."""
        return tuple(self._adapters)

    def set_max_batch(self, count: int) -> None:
        """Let so many texts run side by side from the next step on."""
        self._scheduler.max_batch = count

    def add_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter known, in the place of one of the same name.

        Raises:
            AdapterError: It is damaged, does not fit the base, or changes nothing.
        """
        adapter = PackedAdapter.from_folder(self.decoder.config, folder)
        if self._plain is None:
            self._plain = self._probe(None)
        # The lock is given back in between: running texts wait for one short step, not for the whole check.
        if bool((self._probe(adapter) == self._plain).all()):
            raise AdapterError(f"the adapter {name!r} changes nothing: it was made for another base, or is empty")
        with self._lock:
            self._adapters[name] = adapter

    def start(self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None) -> RunningSequence:
        """Queue a request.

        Raises:
            AdapterError: No adapter of that name is known.
            ContextLengthError: The prompt leaves no room for a token, or its cache more memory than there is.
            ValueError: An empty prompt.
        """
        if not prompt:
            raise ValueError("the prompt has no tokens; give at least one")
        if adapter is not None and adapter not in self._adapters:
            raise AdapterError(f"no adapter {adapter!r} is loaded; there are {', '.join(self._adapters) or 'none'}")
        if self._window is None and len(prompt) >= self.context:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, the model's context holds {self.context}; shorten it"
            )
        with self._lock:
            cache = self._prefixes.take(prompt, adapter) or self._new_cache()
            sequence = RunningSequence(
                prompt,
                cache,
                sampling,
                adapter=None if adapter is None else self._adapters[adapter],
                most_bytes=self._most_bytes(len(prompt) + sampling.max_new_tokens),
            )
            self._scheduler.submit(sequence)
        return sequence

    def tokens(self, sequence: RunningSequence, *, adapter: str | None = None) -> Iterator[NewToken]:
        """The tokens of a started request as they are made; closing the iterator withdraws it."""
        try:
            while True:
                while sequence.new_tokens:
                    yield sequence.new_tokens.popleft()
                if sequence.is_done:
                    return
                # Whoever gets the lock computes a step for all; the others find their tokens when they get it.
                with self._lock:
                    if not sequence.new_tokens and not sequence.is_done:
                        self._scheduler.step()
        finally:
            with self._lock:
                self._scheduler.withdraw(sequence)
                self._prefixes.keep(sequence.cache, adapter)

    def _run(self, sequences: Sequence[RunningSequence]) -> None:
        # Remembered texts give their memory to running ones.
        self._prefixes.shrink(self._cache_bytes - sum(member.most_bytes for member in sequences))
        logits = self.decoder.forward([sequence.chunk() for sequence in sequences])
        for sequence, rows in zip(sequences, logits, strict=True):
            sequence.take(rows)

    def _new_cache(self) -> SequenceCache:
        return SequenceCache(self.decoder.config, dtype=self._cache_dtype, window=self._window)

    def _most_bytes(self, tokens: int) -> int:
        """Bytes of a cache with room for so many tokens, which grows by doubling."""
        if self._window is not None:
            tokens = min(tokens, 2 * self._window)
        room = 256
        while room < tokens:
            room *= 2
        if self._window is None:
            room = min(room, self.decoder.config.max_context)
        return room * bytes_per_token(self.decoder.config, self._cache_dtype)

    def _probe(self, adapter: PackedAdapter | None) -> Tensor:
        """What the model computes for a fixed text."""
        tokens = [token % self.decoder.config.vocab_size for token in _PROBE]
        with self._lock:
            return self.decoder.forward([Chunk(tokens, self._new_cache(), adapter)])[0]
