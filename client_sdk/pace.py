"""How long and how often a device bothers the server; the clock is one that tests can set."""

import random
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Time, so that tests need not wait."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how often this device bothers the server.

    Attributes:
        connect_timeout_s: to open a connection.
        read_timeout_s: without a single byte.
        request_deadline_s: for one small answer as a whole, however slowly it drips.
        attempts: tries of one small request, and tries of a download in a row without progress.
        backoff_base_s, backoff_cap_s: the wait before try n is random in [0, min(cap, base * 2**n)].
        download_deadline_s: for one package as a whole; what arrived is kept and continued by the next update.
        min_rate_bytes_per_s, rate_window_s: a download slower than this over the window is cut and tried again.
    """

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    request_deadline_s: float = 60.0
    attempts: int = 5
    backoff_base_s: float = 0.5
    backoff_cap_s: float = 60.0
    download_deadline_s: float = 6 * 3600.0
    min_rate_bytes_per_s: float = 1024.0
    rate_window_s: float = 60.0


class Backoff:
    """Exponential waits with full jitter, so that a fleet does not come back all at once."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits = limits
        self._clock = clock
        self._random = random.SystemRandom()

    def wait(self, failures: int, *, at_least_s: float | None = None) -> None:
        """Wait after the `failures`-th failure in a row; a server's Retry-After is a floor, up to the cap."""
        ceiling = min(self._limits.backoff_cap_s, self._limits.backoff_base_s * 2.0**failures)
        asked = min(at_least_s or 0.0, self._limits.backoff_cap_s)
        self._clock.sleep(max(asked, self._random.uniform(0.0, ceiling)))
