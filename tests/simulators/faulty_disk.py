"""A disk that fails at a chosen operation, on top of a real folder: without power, torn, full, read-only, or with EIO.

Follows mcuboot's simulator: run once and count the operations, then run again with a fault at each of them. What a
power cut leaves depends on what had been synced, as on a real file system:

- `nothing`: everything issued before the cut has reached the disk, and half of a write that was under way;
- `unsynced`: names (creations, renames, removals) whose folder was not synced are undone, and so is unsynced content;
- `content`: names have reached the disk, unsynced content has not (the empty-file-after-rename trap);
- `some`: the first few of those names, and any sectors of that content.
"""

import errno
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Literal
from uuid import uuid4

from client_sdk.disk import LocalDisk

Loses = Literal["nothing", "unsynced", "content", "some"]
_SECTOR_BYTES = 512


class PowerCut(BaseException):
    """The power is gone. Not an Exception: no handler may go on as if a disk still worked."""


class FaultyDisk(LocalDisk):
    """The real disk until a fault.

    Args:
        stash: A folder on the same disk, for what a cut brings back.
        cut_at: The operation, counted from 1, at which the power goes.
        loses: What the cut undoes.
        fail_at: The operation that fails by itself; half of a write is done by then.
        code: How it fails: ENOSPC, EROFS, EIO ...
        stays_failed: Whether all operations after it fail as well.
        space_bytes: The disk is full when as much more was written.
        reports_free_bytes: What `free_bytes` answers in place of the truth.
    """

    def __init__(
        self,
        stash: Path,
        *,
        cut_at: int | None = None,
        loses: Loses = "unsynced",
        fail_at: int | None = None,
        code: int = errno.EIO,
        stays_failed: bool = False,
        space_bytes: int | None = None,
        reports_free_bytes: int | None = None,
    ) -> None:
        self.operations: list[str] = []
        self.space_bytes = space_bytes
        self._reports_free_bytes = reports_free_bytes
        self._stash = stash
        self._cut_at = cut_at
        self._loses = loses
        self._fail_at = fail_at
        self._code = code
        self._stays_failed = stays_failed
        self._is_off = False
        self._names: list[_Name] = []
        self._unsynced: dict[tuple[int, int], _Unsynced] = {}
        stash.mkdir(parents=True, exist_ok=True)

    def free_bytes(self, folder: Path) -> int:
        return super().free_bytes(folder) if self._reports_free_bytes is None else self._reports_free_bytes

    # --- names

    def make_folder(self, folder: Path) -> None:
        self._operate(f"make {folder.name}")
        super().make_folder(folder)
        self._names.append(_Name([folder], lambda made: shutil.rmtree(made, ignore_errors=True)))

    def link(self, existing: Path, new: Path) -> None:
        self._operate(f"link {new.name}")
        os.link(existing, new, follow_symlinks=False)
        self._note_new(new)
        self._settle(new)

    def rename(self, old: Path, new: Path) -> None:
        self._operate(f"rename {new.name}")
        kept = self._keep(new)
        super().rename(old, new)
        self._follow(old, new, self._names)

        def undo(there: Path, back: Path) -> None:
            if there.exists():
                there.replace(back)
            if kept:
                kept.replace(there)

        self._names.append(_Name([new, old], undo))

    def remove(self, path: Path) -> None:
        kept = self._keep(path)
        if kept:
            self._names.append(_Name([path], lambda gone: _put_back(kept, gone)))
        self._operate(f"remove {path.name}", partly=lambda: _remove_half(path))
        super().remove(path)

    def sync_folder(self, folder: Path) -> None:
        # Only noted: a real fsync changes nothing that a test could see, and costs most of its time.
        self._operate(f"sync {folder.name}/")
        self._names = [name for name in self._names if name.paths[0].parent != folder]

    # --- content

    def create(self, path: Path) -> "_File":
        self._operate(f"create {path.name}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._note_new(path)
        return _File(self, path, descriptor, 0)

    def open_at(self, path: Path, offset: int) -> "_File":
        self._operate(f"open {path.name}")
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if is_new:
            self._note_new(path)
        self._resize(descriptor, offset)
        return _File(self, path, descriptor, offset)

    def append(self, path: Path, length: int) -> "_File":
        self._operate(f"append {path.name}")
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        self._resize(descriptor, length)
        return _File(self, path, descriptor, length)

    def edit(self, path: Path) -> "_File":
        self._operate(f"edit {path.name}")
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        if is_new:
            self._note_new(path)
        return _File(self, path, descriptor, 0)

    def sync_file(self, path: Path) -> None:
        self.sync(path)

    def sync(self, path: Path) -> None:
        self._operate(f"sync {path.name}")
        self._settle(path)

    def write(self, path: Path, descriptor: int, offset: int, data: bytes) -> int:
        def put(part: bytes) -> None:
            self._log(descriptor, offset, len(part))
            os.pwrite(descriptor, part, offset)

        self._operate(f"write {path.name}", partly=lambda: put(data[: len(data) // 2]))
        room = len(data) if self.space_bytes is None else min(len(data), self.space_bytes)
        put(data[:room])
        if self.space_bytes is not None:
            self.space_bytes -= room
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return room

    def _resize(self, descriptor: int, length: int) -> None:
        size = os.fstat(descriptor).st_size
        if length != size:
            self._log(descriptor, min(length, size), abs(size - length))
            os.ftruncate(descriptor, length)

    # --- faults

    def _operate(self, name: str, *, partly: Callable[[], None] = lambda: None) -> None:
        if self._is_off:
            raise PowerCut("the power is off")
        self.operations.append(name)
        count = len(self.operations)
        if count == self._cut_at:
            partly()
            self._is_off = True
            self._lose(random.Random(count))
            raise PowerCut(f"cut at operation {count}: {name}")
        if self._fail_at is not None and (count == self._fail_at or (self._stays_failed and count > self._fail_at)):
            if count == self._fail_at:
                partly()
            raise OSError(self._code, os.strerror(self._code), name)

    def _lose(self, draw: random.Random) -> None:
        if self._loses in {"unsynced", "some"}:
            stayed = draw.randint(0, len(self._names)) if self._loses == "some" else 0
            while len(self._names) > stayed:
                name = self._names.pop()
                name.undo(*name.paths)
                if len(name.paths) > 1:
                    self._follow(*name.paths, self._names)
        for content in self._unsynced.values():
            if self._loses != "nothing":
                content.lose(draw if self._loses == "some" else None)
            content.forget()

    # --- what a cut may undo

    def _note_new(self, path: Path) -> None:
        self._names.append(_Name([path], lambda made: made.unlink(missing_ok=True)))

    @staticmethod
    def _follow(old: Path, new: Path, names: "list[_Name]") -> None:
        """What was done inside a folder that moves is from now on to be undone where it is."""
        for name in names:
            name.paths = [new / path.relative_to(old) if path.is_relative_to(old) else path for path in name.paths]

    def _log(self, descriptor: int, offset: int, length: int) -> None:
        status = os.fstat(descriptor)
        content = self._unsynced.setdefault((status.st_dev, status.st_ino), _Unsynced())
        content.log(descriptor, offset, length)

    def _settle(self, path: Path) -> None:
        status = path.stat()
        content = self._unsynced.pop((status.st_dev, status.st_ino), None)
        if content:
            content.forget()

    def _keep(self, path: Path) -> Path | None:
        """A second name for what is about to disappear, so that the cut can bring it back."""
        if not path.exists():
            return None
        kept = self._stash / uuid4().hex
        if path.is_dir():
            shutil.copytree(path, kept, copy_function=os.link)
        else:
            os.link(path, kept)
        return kept


@dataclass
class _Name:
    """A change of a folder that was not synced yet, and the way back with the paths that it takes, the name first."""

    paths: list[Path]
    undo: Callable[..., None]


@dataclass
class _Unsynced:
    """What was written to one file since its last sync: (offset, the bytes before, the file's length before)."""

    changes: list[tuple[int, bytes, int]] = field(default_factory=list)
    descriptor: int = -1

    def log(self, descriptor: int, offset: int, length: int) -> None:
        if self.descriptor < 0:
            # One of its own: the file may be closed, renamed or removed by the time of the cut.
            self.descriptor = os.dup(descriptor)
        self.changes.append((offset, os.pread(descriptor, length, offset), os.fstat(descriptor).st_size))

    def lose(self, draw: random.Random | None) -> None:
        """Go back to what was synced; with `draw`, only in some sectors."""
        now = os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)
        for offset, before, length in reversed(self.changes):
            os.pwrite(self.descriptor, before, offset)
            os.ftruncate(self.descriptor, length)
        if draw is not None:
            if draw.random() < 0.5:
                os.ftruncate(self.descriptor, len(now))
            for start in range(0, os.fstat(self.descriptor).st_size, _SECTOR_BYTES):
                if draw.random() < 0.5:
                    os.pwrite(self.descriptor, now[start : start + _SECTOR_BYTES], start)

    def forget(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class _File(RawIOBase):
    """An open file whose writes and syncs are operations of the disk."""

    def __init__(self, disk: FaultyDisk, path: Path, descriptor: int, position: int) -> None:
        super().__init__()
        self._disk = disk
        self._path = path
        self._descriptor = descriptor
        self._position = position

    def write(self, data: bytes) -> int:
        written = self._disk.write(self._path, self._descriptor, self._position, bytes(data))
        self._position += written
        return written

    def write_at(self, offset: int, data: bytes) -> None:
        self._disk.write(self._path, self._descriptor, offset, bytes(data))

    def sync(self) -> None:
        self._disk.sync(self._path)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _put_back(kept: Path, path: Path) -> None:
    if not path.parent.exists():
        return
    if kept.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    if kept.is_dir() or not path.exists():
        kept.replace(path)


def _remove_half(path: Path) -> None:
    """What a removal that is cut off leaves of a folder."""
    inside = sorted(path.rglob("*"), reverse=True) if path.is_dir() and not path.is_symlink() else []
    for gone in inside[: len(inside) // 2]:
        if gone.is_dir():
            gone.rmdir()
        else:
            gone.unlink()
