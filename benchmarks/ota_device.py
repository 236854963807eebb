"""One device process of `ota.py`: waits for a line, updates once, and says as JSON what that took.

    python benchmarks/ota_device.py HOME

Like an application that runs already: what is timed is the update, not the start of Python.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    """Update one home."""
    from client_sdk import Device  # noqa: PLC0415 - its memory counts before the update begins
    from delta_updates.memory import peak_memory_bytes  # noqa: PLC0415 - as above

    home = Path(sys.argv[1])
    device = Device(home)
    before = _resident_bytes()
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    meter = _DiskMeter(home)
    meter.start()
    started = time.perf_counter()
    result = device.update()
    seconds = time.perf_counter() - started
    meter.stop()
    answer = {
        **dataclasses.asdict(result),
        "seconds": seconds,
        "to_switch_seconds": seconds - result.self_test_seconds,
        "memory_before_bytes": before,
        "peak_memory_bytes": peak_memory_bytes(),
        "disk_before_bytes": meter.before,
        "peak_disk_bytes": meter.peak,
    }
    print(json.dumps(answer), flush=True)


class _DiskMeter(threading.Thread):
    """The largest that a folder became, with hard links counted once."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._is_over = threading.Event()
        self.before = self.peak = self._bytes()

    def run(self) -> None:
        while not self._is_over.wait(0.02):
            self.peak = max(self.peak, self._bytes())

    def stop(self) -> None:
        self._is_over.set()
        self.join()

    def _bytes(self) -> int:
        seen: dict[int, int] = {}
        for folder, _, names in os.walk(self._folder):
            for name in names:
                try:
                    status = os.lstat(Path(folder) / name)
                except FileNotFoundError:
                    continue
                seen[status.st_ino] = status.st_blocks * 512
        return sum(seen.values())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
