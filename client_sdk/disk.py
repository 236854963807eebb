"""Durable changes on this device's disk.

Every change that must survive a power cut goes through a `Disk` (the seam of `delta_updates`, with two methods more),
so that a test can count the operations of an update and cut the power at each of them.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from client_sdk.errors import DeviceDiskError
from delta_updates import disk as delta_disk

SECRET_MODE = 0o600
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Disk(delta_disk.Disk, Protocol):
    """What an update changes on a disk. Every method raises OSError when it fails."""

    def open_at(self, path: Path, offset: int) -> BinaryIO:
        """Open a file (made when missing) for writing from `offset` on; whatever lay beyond is cut off."""
        ...

    def sync_file(self, path: Path) -> None:
        """Return once the content of a file is on stable storage."""
        ...


class LocalDisk(delta_disk.LocalDisk):
    """The real disk."""

    def open_at(self, path: Path, offset: int) -> BinaryIO:
        """Open a file (made when missing) for writing from `offset` on; whatever lay beyond is cut off."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, SECRET_MODE)
        try:
            os.ftruncate(descriptor, offset)
            os.lseek(descriptor, offset, os.SEEK_SET)
        except OSError:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "wb", buffering=0)

    def sync_file(self, path: Path) -> None:
        """Return once the content of a file is on stable storage."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(disk: Disk, path: Path, data: bytes) -> None:
    """Put `data` at `path`, readable by this user only; a power cut at any moment leaves the old bytes or the new.

    Temporary file → fsync → rename → fsync of the folder.

    Raises:
        OSError: the disk is full, read-only or failing; `path` is as it was.
    """
    temporary = path.with_name(path.name + ".new")
    disk.remove(temporary)
    file = disk.create(temporary)
    try:
        temporary.chmod(SECRET_MODE)
        file.write(data)
        file.sync()
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.sync_folder(path.parent)


def make_private_folder(folder: Path) -> None:
    """Make a folder, and its parents, that only this user can read. An existing one is left as it is."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


@contextmanager
def disk_errors(folder: Path, doing: str) -> Iterator[None]:
    """Turn an `OSError` of this device's disk into a `DeviceDiskError` in the user's words.

    Args:
        folder: where the work happens; it is named in the message.
        doing: what was going on, as in "storing the download".

    Raises:
        DeviceDiskError: the disk is full, read-only or failing.
    """
    try:
        yield
    except OSError as error:
        raise DeviceDiskError(_sentence(error, folder, doing)) from error


def _sentence(error: OSError, folder: Path, doing: str) -> str:
    if error.errno in _FULL:
        return (
            f"The disk that holds {folder} became full while {doing}. Free some space and run the update again: a "
            "download continues where it stopped."
        )
    if error.errno in _NOT_WRITABLE:
        return f"{folder} cannot be written while {doing} ({error.strerror}). Check its owner and how it is mounted."
    return f"The disk that holds {folder} failed while {doing} ({error.strerror or error}). Check the disk."
