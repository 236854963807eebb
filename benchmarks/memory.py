"""The most memory of a process, without importing anything that would count in it."""

from pathlib import Path


def peak_megabytes() -> float:
    """Most memory that this process, and those that it has started and that still run, ever had resident.

    `getrusage` would count that of the process that started it.
    """
    kilobytes = 0
    for process in ("self", *_children()):
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        kilobytes += int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    return kilobytes / 1024.0


def _children() -> list[str]:
    return [child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()]
