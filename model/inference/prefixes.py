"""Caches of texts that ended, kept for those that begin alike: a chat reads each turn once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from model.inference.cache import SequenceCache

# Copying a shorter beginning costs less than reading it, but not nothing.
_MIN_SHARED: Final = 8


class _Kept(NamedTuple):
    adapter: Hashable
    cache: SequenceCache


class PrefixStore:
    """The most recently used caches, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: list[_Kept] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of what is kept."""
        return sum(kept.cache.num_bytes for kept in self._kept)

    def keep(self, cache: SequenceCache, adapter: Hashable) -> None:
        """Remember a text whose end was reached; the one used longest ago makes room."""
        if cache.start == 0 and cache.length >= _MIN_SHARED:  # a window has forgotten its beginning
            self._kept = [k for k in self._kept if not (k.adapter == adapter and _is_prefix(k.cache, cache))]
            self._kept.append(_Kept(adapter, cache))
        self.shrink(self.max_bytes)

    def take(self, tokens: Sequence[int], adapter: Hashable) -> SequenceCache | None:
        """A cache that holds a beginning of these tokens, at most all but the last, for the caller alone; or None.

        What was computed with another adapter is never used. A text that goes on is handed over; one that branches off
        is copied, so that the other branch stays known.
        """
        best, shared = None, _MIN_SHARED - 1
        for kept in self._kept:
            if kept.adapter == adapter and (length := _shared(kept.cache.tokens, tokens)) > shared:
                best, shared = kept, length
        if best is None:
            return None
        self._kept.remove(best)
        if shared >= best.cache.length - 1 or best.cache.window is not None:
            best.cache.truncate(shared)
            return best.cache
        self._kept.append(best)
        return best.cache.copy(shared)

    def shrink(self, max_bytes: int) -> None:
        """Forget the oldest until no more than so many bytes are kept."""
        while self._kept and self.num_bytes > max(0, max_bytes):
            self._kept.pop(0)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def _shared(held: Sequence[int], tokens: Sequence[int]) -> int:
    """Length of the common beginning, at most all tokens but the last: its logits are still to be computed."""
    most = min(len(held), len(tokens) - 1)
    return next((n for n in range(most) if held[n] != tokens[n]), most)


def _is_prefix(short: SequenceCache, long: SequenceCache) -> bool:
    return long.tokens[: short.length] == short.tokens
