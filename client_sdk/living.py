"""Marks of processes that live: files that are locked until their process ends, however it ends."""

import fcntl
import os
import secrets
from enum import StrEnum
from pathlib import Path

_PREFIX = "start-"


class Fate(StrEnum):
    """What became of the process that made a mark."""

    ALIVE = "alive"
    ENDED = "ended"
    """In order: it took its mark away."""
    DIED = "died"


class LivingMark:
    """This process's mark in a folder; the kernel frees its lock with the process, so no process id can mislead."""

    def __init__(self, folder: Path) -> None:
        """Make it.

        Raises:
            OSError: The disk does not let it.
        """
        self.name = secrets.token_hex(8)
        self._path = _path(folder, self.name)
        self._descriptor: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def die(self) -> None:
        """Leave the mark unlocked, as the end of the process does."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Take it away: the process ends in order, or need not be watched any more."""
        self._path.unlink(missing_ok=True)
        self.die()


def fate_of(folder: Path, name: str) -> Fate:
    """What became of the process with this mark; a dead one's mark is removed, so that it is told once."""
    path = _path(folder, name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Fate.ENDED
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Fate.ALIVE
    else:
        path.unlink(missing_ok=True)
        return Fate.DIED
    finally:
        os.close(descriptor)


def remove_dead_marks(folder: Path) -> None:
    """Remove what dead processes left."""
    for path in folder.glob(f"{_PREFIX}*"):
        fate_of(folder, path.name.removeprefix(_PREFIX))


def _path(folder: Path, name: str) -> Path:
    return folder / f"{_PREFIX}{name}"
