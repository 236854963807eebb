"""How many threads to compute with: pure decisions, and the readings of this machine they are made from.

Threads of one product wait for each other at its end. On a machine whose cores are taken, each wait lasts a time slice
of somebody else's: two threads were measured at a tenth of one thread's speed. So only free cores are used.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

MAX_THREADS = 16
"""Generation reads weights; more threads than that do not read faster on any device this is made for."""

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_MIN_INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The machine at one moment: seconds of a steady clock, the load average, and this process's CPU seconds."""

    at_s: float
    load: float
    own_cpu_s: float


def choose_threads(*, cores: int, load: float, own_load: float, current: int | None = None) -> int:
    """Threads for the next answer.

    Args:
        cores: cores this process may use.
        load: running and waiting threads of the machine, as a load average.
        own_load: the part of it that this process caused.
        current: threads in use; they are kept while the decision is a close one.

    Returns:
        1 to `cores`, at most `MAX_THREADS`.
    """
    cores = max(1, min(cores, MAX_THREADS))
    free = cores - max(0.0, load - own_load)
    wanted = max(1, min(cores, round(free)))
    if current is not None and 1 <= current <= cores and abs(free - current) < 0.75:  # noqa: PLR2004 - more than rounding
        return current
    return wanted


class LoadMeter:
    """Remembers the last reading, since a load average contains what this process did itself."""

    def __init__(self) -> None:
        self._before = read_machine()
        self._own_load = 0.0

    def threads(self, current: int | None = None) -> int:
        """What `choose_threads` says about this machine now."""
        now = read_machine()
        elapsed = now.at_s - self._before.at_s
        if elapsed >= _MIN_INTERVAL_S:
            # The load average forgets with a time constant of a minute; own work is weighed the same way.
            weight = min(1.0, elapsed / 60.0)
            busy = (now.own_cpu_s - self._before.own_cpu_s) / elapsed
            self._own_load += weight * (busy - self._own_load)
            self._before = now
        return choose_threads(cores=usable_cores(), load=now.load, own_load=self._own_load, current=current)


def read_machine() -> Reading:
    """Clock, load average of the last minute and this process's CPU time; a load of 0 where there is none."""
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):  # pragma: no cover - platforms without a load average
        load = 0.0
    return Reading(time.monotonic(), load, time.process_time())


def usable_cores() -> int:
    """Cores this process may run on: its affinity, and a container's share of CPU time."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # pragma: no cover - platforms without affinities
        cores = os.cpu_count() or 1
    try:
        return min(cores, cores_of_limit(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):
        return cores


def cores_of_limit(text: str) -> int:
    """Whole cores in a cgroup's `cpu.max`, at least one.

    Raises:
        ValueError: there is no limit, or the text is none.
    """
    quota, _, period = text.partition(" ")
    return max(1, int(quota) // int(period))
