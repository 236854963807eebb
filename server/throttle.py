"""How often somebody may ask: token buckets in memory, bounded, one set a process."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final

from server.errors import TooManyRequestsError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_KEYS: Final = 50_000


class TokenBuckets:
    """A bucket for each key: ``burst`` at once, then ``per_minute``. What was asked least recently is forgotten first.

    Args:
        per_minute: How many tokens come back in a minute; 0 means that nothing is limited.
        burst: How many a full bucket holds.
        max_keys: How many buckets are kept.
        now: Seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        *,
        per_minute: float,
        burst: float,
        max_keys: int = _MAX_KEYS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second, self._burst, self._max_keys, self._now = per_minute / 60, burst, max_keys, now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, key: str) -> float:
        """Take a token; 0.0, or the seconds until there is one again."""
        if self._per_second == 0:
            return 0.0
        with self._lock:
            left = self._left(key)
            wait_s = max(0.0, (1 - left) / self._per_second)
            self._buckets[key] = (left if wait_s else left - 1, self._now())
            self._buckets.move_to_end(key)
            if len(self._buckets) > self._max_keys:
                self._buckets.popitem(last=False)
            return wait_s

    def require(self, key: str, *, of: str) -> None:
        """Take a token.

        Args:
            key: Whose bucket.
            of: What there are too many of, in the caller's words.

        Raises:
            TooManyRequestsError: The bucket is empty; says when to come back.
        """
        if wait_s := self.take(key):
            whole_s = math.ceil(wait_s)
            raise TooManyRequestsError(f"Too many {of}. Try again in {whole_s} s.", retry_after_s=whole_s)

    def give_back(self, key: str) -> None:
        """Put a token back: what it was taken for does not count."""
        with self._lock:
            if key in self._buckets:
                self._buckets[key] = (min(self._burst, self._left(key) + 1), self._now())

    def _left(self, key: str) -> float:
        now = self._now()
        left, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, left + (now - at) * self._per_second)
