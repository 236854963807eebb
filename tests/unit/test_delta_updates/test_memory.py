"""The peak is this process's own."""

import subprocess
import sys

SMALL = "from delta_updates.memory import peak_memory_bytes; print(peak_memory_bytes())"
LARGE = f"""
import subprocess, sys
from delta_updates.memory import peak_memory_bytes
before = peak_memory_bytes()
held = b"1" * 400_000_000
print(peak_memory_bytes() - before, subprocess.check_output([sys.executable, "-c", {SMALL!r}], text=True))
"""


def test_what_another_process_held_does_not_count() -> None:
    own, child = subprocess.check_output([sys.executable, "-c", LARGE], text=True).split()
    assert int(own) > 390_000_000
    assert 10_000_000 < int(child) < 300_000_000
