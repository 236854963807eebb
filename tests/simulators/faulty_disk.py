"""A disk that loses power at a chosen operation, or becomes full, on top of a real folder.

Follows mcuboot's simulator: run once and count the operations, then run again with a cut at each of them. What a cut
leaves depends on what had been synced, as on a real file system:

- `nothing`: everything issued before the cut has reached the disk;
- `unsynced`: names (creations, renames, removals) whose folder was not synced are undone, unsynced content is cut;
- `content`: names have reached the disk, unsynced content has not (the empty-file-after-rename trap).
"""

import errno
import os
import shutil
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from client_sdk.disk import LocalDisk

if TYPE_CHECKING:
    from collections.abc import Callable

Loses = Literal["nothing", "unsynced", "content"]


class PowerCut(BaseException):
    """The power is gone: this process does not run on."""


class FaultyDisk(LocalDisk):
    """The real disk until operation number `cut_at` (from 1), or until `space_bytes` more were written."""

    def __init__(
        self,
        stash: Path,
        *,
        cut_at: int | None = None,
        loses: Loses = "unsynced",
        space_bytes: int | None = None,
        reports_free_bytes: int | None = None,
    ) -> None:
        self.operations: list[str] = []
        self.space_bytes = space_bytes
        self._reports_free_bytes = reports_free_bytes
        self._stash = stash
        self._cut_at = cut_at
        self._loses = loses
        self._is_off = False
        self._names: list[tuple[Path, Callable[[], None]]] = []
        self._unsynced: set[Path] = set()
        stash.mkdir(parents=True, exist_ok=True)

    def free_bytes(self, folder: Path) -> int:
        return super().free_bytes(folder) if self._reports_free_bytes is None else self._reports_free_bytes

    def make_folder(self, folder: Path) -> None:
        self._operate(f"make {folder.name}")
        super().make_folder(folder)
        self._names.append((folder.parent, lambda: shutil.rmtree(folder, ignore_errors=True)))

    def create(self, path: Path) -> "_File":
        self._operate(f"create {path.name}")
        file = _File(self, path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        self._names.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return file

    def open_at(self, path: Path, offset: int) -> "_File":
        self._operate(f"open {path.name}")
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, offset)
        os.lseek(descriptor, offset, os.SEEK_SET)
        if is_new:
            self._names.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return _File(self, path, descriptor)

    def link(self, existing: Path, new: Path) -> None:
        self._operate(f"link {new.name}")
        super().link(existing, new)
        self._names.append((new.parent, lambda: new.unlink(missing_ok=True)))

    def rename(self, old: Path, new: Path) -> None:
        self._operate(f"rename {new.name}")
        kept = self._keep(new)
        super().rename(old, new)
        if old in self._unsynced:
            self._unsynced.discard(old)
            self._unsynced.add(new)

        def undo() -> None:
            if new.exists():
                new.replace(old)
            if kept:
                kept.replace(new)

        self._names.append((new.parent, undo))

    def sync_file(self, path: Path) -> None:
        self.sync(path)

    def sync_folder(self, folder: Path) -> None:
        # Only noted: a real fsync changes nothing that a test could see, and costs most of its time.
        self._operate(f"sync {folder.name}/")
        self._names = [(place, undo) for place, undo in self._names if place != folder]

    def remove(self, path: Path) -> None:
        self._operate(f"remove {path.name}")
        kept = self._keep(path)
        if kept:
            self._names.append((path.parent, lambda: None if path.exists() else _put_back(kept, path)))
        super().remove(path)

    def write(self, path: Path, descriptor: int, data: bytes) -> int:
        if self._cut_at == len(self.operations) + 1:
            os.write(descriptor, data[: len(data) // 2])
        self._operate(f"write {path.name}")
        self._unsynced.add(path)
        room = len(data) if self.space_bytes is None else min(len(data), self.space_bytes)
        written = os.write(descriptor, data[:room])
        if self.space_bytes is not None:
            self.space_bytes -= written
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    def sync(self, path: Path) -> None:
        self._operate(f"sync {path.name}")
        self._unsynced.discard(path)

    def _operate(self, name: str) -> None:
        if self._is_off:
            raise PowerCut("the power is off")
        self.operations.append(name)
        if len(self.operations) == self._cut_at:
            self._is_off = True
            self._lose()
            raise PowerCut(f"cut at operation {self._cut_at}: {name}")

    def _lose(self) -> None:
        if self._loses == "unsynced":
            for _, undo in reversed(self._names):
                undo()
        if self._loses != "nothing":
            for path in self._unsynced:
                if path.is_file():
                    os.truncate(path, path.stat().st_size // 2)

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


class _File(RawIOBase):
    """An open file whose writes and syncs are operations of the disk."""

    def __init__(self, disk: FaultyDisk, path: Path, descriptor: int) -> None:
        super().__init__()
        self._disk = disk
        self._path = path
        self._descriptor = descriptor

    def write(self, data: bytes) -> int:
        return self._disk.write(self._path, self._descriptor, bytes(data))

    def sync(self) -> None:
        self._disk.sync(self._path)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _put_back(kept: Path, path: Path) -> None:
    if path.parent.exists():
        kept.replace(path)
