"""How much memory this process needed: what a device and a benchmark report, and what tests hold us to."""

import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Return the most bytes that this process ever had resident.

    On Linux not what `getrusage` says: a process starts there with the peak of the one that started it, so that in a
    device's self-test the application's own memory would count.
    """
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    import resource  # noqa: PLC0415 - not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
