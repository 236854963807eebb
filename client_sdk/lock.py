"""One updater at a time, and one process at a time that changes the device's key."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client_sdk.disk import disk_errors
from client_sdk.errors import UpdateInProgressError


@contextmanager
def update_lock(home: Path) -> Iterator[None]:
    """Let only one process at a time change this device; the kernel frees the lock however a process ends.

    Raises:
        UpdateInProgressError: another process holds it.
        DeviceDiskError: the lock file cannot be opened.
    """
    with _lock_file(home, "update.lock", "taking the update lock") as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpdateInProgressError(
                f"Another process is updating the device in {home}. Wait for it to end, then run this again."
            ) from None
        yield


@contextmanager
def key_lock(home: Path) -> Iterator[None]:
    """Wait until no other process changes the device's key, which takes a request or two.

    Raises:
        DeviceDiskError: the lock file cannot be opened.
    """
    with _lock_file(home, "key.lock", "taking the key's lock") as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _lock_file(home: Path, name: str, doing: str) -> Iterator[int]:
    with disk_errors(home, doing):
        descriptor = os.open(home / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
