"""A disk that fails at the n-th operation: either that one operation, or everything from then on (a power cut).

Count the operations of one clean run (`FailingDisk()` and its `operations`), then repeat it with a failure at each.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from delta_updates.disk import Disk, LocalDisk, WritableFile


class PowerCutError(BaseException):
    """The device lost power. Not an Exception: no handler may go on as if a disk still worked."""


class FailingDisk:
    """The real disk behind a counter.

    Args:
        fail_at: The operation that fails, counted from 1; None: none does.
        is_power_cut: Nothing works from there on, and `after_reboot` loses what was not synced.
        code: The errno of a plain failure.
        free: What `free_bytes` answers; None: the truth.
    """

    def __init__(
        self,
        fail_at: int | None = None,
        *,
        is_power_cut: bool = False,
        code: int = errno.ENOSPC,
        free: int | None = None,
    ) -> None:
        self.operations: list[str] = []
        self._inner: Disk = LocalDisk()
        self._fail_at = fail_at
        self._is_power_cut = is_power_cut
        self._code = code
        self._free = free
        self._undo: list[tuple[Path, Callable[[], None]]] = []
        self._unsynced: set[Path] = set()

    def free_bytes(self, folder: Path) -> int:
        return self._inner.free_bytes(folder) if self._free is None else self._free

    def make_folder(self, folder: Path) -> None:
        self._step(f"make_folder {folder.name}")
        self._inner.make_folder(folder)
        self._undo.append((folder.parent, lambda: shutil.rmtree(folder, ignore_errors=True)))

    def create(self, path: Path) -> WritableFile:
        self._step(f"create {path.name}")
        stream = self._inner.create(path)
        self._unsynced.add(path)
        self._undo.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return _FailingFile(self, path, stream)

    def link(self, existing: Path, new: Path) -> None:
        self._step(f"link {new.name}")
        self._inner.link(existing, new)
        self._undo.append((new.parent, lambda: new.unlink(missing_ok=True)))

    def rename(self, old: Path, new: Path) -> None:
        self._step(f"rename {new.name}")
        self._inner.rename(old, new)

        def rename_back() -> None:
            with contextlib.suppress(OSError):
                new.rename(old)

        self._undo.append((new.parent, rename_back))

    def sync_folder(self, folder: Path) -> None:
        self._step(f"sync_folder {folder.name}")
        self._inner.sync_folder(folder)
        self._undo = [(place, action) for place, action in self._undo if place != folder]

    def remove(self, path: Path) -> None:
        self._step(f"remove {path.name}")
        self._inner.remove(path)

    def after_reboot(self) -> None:
        """Lose everything that a disk may lose: content that was not synced, names in folders that were not."""
        for path in self._unsynced:
            if path.exists():
                os.truncate(path, 0)
        for _, action in reversed(self._undo):
            action()

    def _step(self, operation: str, before: Callable[[], None] = lambda: None) -> None:
        self.operations.append(operation)
        count = len(self.operations)
        if self._fail_at is None or count < self._fail_at:
            return
        if self._is_power_cut:
            raise PowerCutError(operation)
        if count == self._fail_at:
            before()
            raise OSError(self._code, os.strerror(self._code), operation)


class _FailingFile:
    def __init__(self, disk: FailingDisk, path: Path, stream: WritableFile) -> None:
        self._disk = disk
        self._path = path
        self._stream = stream

    def write(self, data: bytes) -> None:
        # A full disk takes a part of the data before it refuses the rest.
        self._disk._step(f"write {self._path.name}", lambda: self._stream.write(data[: len(data) // 2]))
        self._stream.write(data)

    def sync(self) -> None:
        self._disk._step(f"sync {self._path.name}")
        self._stream.sync()
        self._disk._unsynced.discard(self._path)

    def close(self) -> None:
        self._stream.close()
