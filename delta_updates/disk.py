"""The few disk operations that change something: the seam where tests let a disk fail."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from delta_updates.errors import StorageError

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}


class WritableFile(Protocol):
    """A file that is being written, from its beginning or from where it was left."""

    def write(self, data: bytes) -> None:
        """Append all of `data`."""
        ...

    def sync(self) -> None:
        """Return once the content is on stable storage."""
        ...

    def close(self) -> None:
        """Close it; a second call does nothing."""
        ...


class EditableFile(Protocol):
    """A file that is changed where it lies."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Put all of `data` at `offset`; the file grows where it must."""
        ...

    def sync(self) -> None:
        """Return once the content is on stable storage."""
        ...

    def close(self) -> None:
        """Close it; a second call does nothing."""
        ...


class Disk(Protocol):
    """What applying and building change on a disk. Every method raises OSError when it fails."""

    def free_bytes(self, folder: Path) -> int:
        """Return how much can still be written to the disk of `folder`."""
        ...

    def make_folder(self, folder: Path) -> None:
        """Make one folder, which must not exist."""
        ...

    def create(self, path: Path) -> WritableFile:
        """Make one file, which must not exist, without following a link."""
        ...

    def append(self, path: Path, length: int) -> WritableFile:
        """Open a file, which must not be a link, to go on after its first `length` bytes; cut off what lies beyond."""
        ...

    def edit(self, path: Path) -> EditableFile:
        """Open a file, made when missing and never a link, to change it where it lies."""
        ...

    def link(self, existing: Path, new: Path) -> None:
        """Give a file a second name."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Move atomically on one disk; replaces a file or an empty folder."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Return once the names in `folder` are on stable storage."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder; nothing there is fine."""
        ...


class LocalFile:
    """A file of `LocalDisk`: unbuffered, so that a full disk is seen at the write that met it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Append all of `data`, also when the kernel takes it in parts."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def write_at(self, offset: int, data: bytes) -> None:
        """Put all of `data` at `offset`; the file grows where it must."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def sync(self) -> None:
        """Return once the content is on stable storage."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close it; a second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class LocalDisk:
    """The real disk."""

    def free_bytes(self, folder: Path) -> int:
        """Return how much an ordinary user can still write to the disk of `folder`."""
        return shutil.disk_usage(folder).free

    def make_folder(self, folder: Path) -> None:
        """Make one folder, which must not exist."""
        folder.mkdir()

    def create(self, path: Path) -> WritableFile:
        """Make one file, which must not exist, without following a link."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return LocalFile(os.open(path, flags, 0o644))

    def append(self, path: Path, length: int) -> WritableFile:
        """Open a file, which must not be a link, to go on after its first `length` bytes; cut off what lies beyond."""
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, length)
            os.lseek(descriptor, length, os.SEEK_SET)
        except OSError:
            os.close(descriptor)
            raise
        return LocalFile(descriptor)

    def edit(self, path: Path) -> EditableFile:
        """Open a file, made when missing and never a link, to change it where it lies."""
        return LocalFile(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))

    def link(self, existing: Path, new: Path) -> None:
        """Give a file a second name, and make sure that its content is on stable storage."""
        os.link(existing, new, follow_symlinks=False)
        _sync(new, os.O_RDONLY | os.O_NOFOLLOW)

    def rename(self, old: Path, new: Path) -> None:
        """Move atomically on one disk; replaces a file or an empty folder."""
        old.replace(new)

    def sync_folder(self, folder: Path) -> None:
        """Return once the names in `folder` are on stable storage."""
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder; nothing there is fine."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn any OSError inside into a StorageError that says what was being done and what helps."""
    try:
        yield
    except OSError as error:
        advice = "free some space and try again" if error.errno in _OUT_OF_SPACE else "check the disk and try again"
        raise StorageError(f"{doing} failed: {error}; {advice}") from error
