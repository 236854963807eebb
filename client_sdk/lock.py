"""One updater at a time."""

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
    with disk_errors(home, "taking the update lock"):
        descriptor = os.open(home / "update.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpdateInProgressError(
                f"Another process is updating the device in {home}. Wait for it to end, then run this again."
            ) from None
        yield
    finally:
        os.close(descriptor)
