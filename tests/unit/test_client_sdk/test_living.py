"""Marks of processes: alive until the kernel says otherwise."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client_sdk.living import Fate, LivingMark, fate_of, remove_dead_marks

PROCESS = """
import sys, time
from pathlib import Path
from client_sdk.living import LivingMark
mark = LivingMark(Path(sys.argv[1]))
print(mark.name, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_told_once(tmp_path: Path, how: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert fate_of(tmp_path, name) is Fate.ALIVE
    process.send_signal(how)
    process.communicate()
    assert [fate_of(tmp_path, name) for _ in range(2)] == [Fate.DIED, Fate.ENDED]


def test_who_takes_the_mark_away_has_ended(tmp_path: Path) -> None:
    mark = LivingMark(tmp_path)
    mark.remove()
    mark.remove()
    assert fate_of(tmp_path, mark.name) is Fate.ENDED


def test_only_dead_marks_are_removed(tmp_path: Path) -> None:
    alive, dead = LivingMark(tmp_path), LivingMark(tmp_path)
    dead.die()
    remove_dead_marks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"start-{alive.name}"]
