"""Answers that are dear to compute, kept for a while."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMES_AS_LONG: Final = 50
_Answer = TypeVar("_Answer")


class Remembered(Generic[_Answer]):
    """Keeps each answer for fifty times as long as it took: however often it is asked for, it costs 2% of a core.

    Args:
        now: Seconds of a clock that only goes forward.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._answers: dict[str, tuple[float, _Answer]] = {}
        self._lock = Lock()

    def get(self, key: str, make: Callable[[], _Answer]) -> _Answer:
        """The answer to ``key``, made anew when it is too old; whoever asks at the same time waits for the same one."""
        with self._lock:
            until, answer = self._answers.get(key, (0.0, None))
            if answer is not None and self._now() < until:
                return answer
            began = self._now()
            made = make()
            took_s = self._now() - began
            self._answers[key] = (self._now() + took_s * _TIMES_AS_LONG, made)
            return made
