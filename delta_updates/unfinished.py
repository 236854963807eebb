"""What an apply that was cut off leaves, so that the next one goes on from there.

```
.NAME.applying/
  journal     the package's fingerprint, then a line for each checkpoint, in canonical JSON: the first `length` bytes of
              the file at `path` have this `sha256`, and were on stable storage before the line was written
  tree/       the target, as far as it is made
```

The journal is only a hint where to look. What it claims is hashed before it is believed, so no journal, torn or
forged, makes a wrong byte part of a version; finished files need no line, for the package says their hashes.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from delta_updates.disk import Disk, LocalDisk, WritableFile, disk_errors
from delta_updates.errors import IntegrityError, StorageError
from delta_updates.manifest import FileEntry, canonical_json
from delta_updates.reading import RandomReader

if TYPE_CHECKING:
    from hashlib import _Hash

# A cut costs at most the work on so many bytes of a file; each checkpoint costs two syncs.
CHECKPOINT_BYTES = 32 << 20
_MAX_JOURNAL_BYTES = 4 << 20


def work_folder(target: Path) -> Path:
    """Return where an unfinished apply of `target` lies."""
    return target.with_name(f".{target.name}.applying")


def drop_unfinished(target: Path, *, disk: Disk | None = None) -> None:
    """Remove what an apply of `target` that was cut off left; nothing there is fine.

    Raises:
        StorageError: The disk failed, or an apply is under way.
    """
    folder = work_folder(target)
    with disk_errors(f"dropping the unfinished {target.name}"), contextlib.ExitStack() as stack:
        if folder.is_dir():
            stack.enter_context(alone_in(folder))
        (disk or LocalDisk()).remove(folder)


class Unfinished:
    """The work folder of one target, for one package; a context manager that lets nobody else work on it.

    Attributes:
        tree: Where the target is made.
        is_resumed: Whether an earlier apply of the same package began it.
    """

    def __init__(self, target: Path, fingerprint: str, disk: Disk) -> None:
        self._folder = work_folder(target)
        self._journal_path = self._folder / "journal"
        self.tree = self._folder / "tree"
        self._first_line = f"{fingerprint}\n".encode()
        self._disk = disk
        self._marks: dict[str, dict[int, str]] = {}
        self._good_length = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._folder.is_dir():
                stack.enter_context(alone_in(self._folder))
            self._read_journal()
            self.is_resumed = self._good_length > 0
            if not self.is_resumed:
                self._clear()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def kept_bytes(self, files: Collection[FileEntry]) -> int:
        """Return how much of `files` lies here at most; it has not been checked."""
        lengths = ((self._length_of(entry), entry.length) for entry in files)
        return sum(min(pair) for pair in lengths)

    def begin(self, files: Collection[FileEntry]) -> None:
        """Make the folder and its journal where they are missing, and remove what is none of `files`."""
        if not self._folder.is_dir():
            self._disk.make_folder(self._folder)
            self._stack.enter_context(alone_in(self._folder))
            self._disk.sync_folder(self._folder.parent)
        if self.is_resumed:
            self._journal = self._disk.append(self._journal_path, self._good_length)
        else:
            self._journal = self._disk.create(self._journal_path)
        self._stack.callback(self._journal.close)
        if not self.is_resumed:
            self._journal.write(self._first_line)
            self._journal.sync()
        if not self.tree.is_dir():
            self._disk.make_folder(self.tree)
            self._disk.sync_folder(self._folder)
        self._remove_strangers(files)

    def verified(self, entry: FileEntry) -> "tuple[int, _Hash]":
        """Return how many bytes of `entry` are here and right, and their running SHA-256.

        Each checkpoint is compared on the way, so that damage costs what was made since the one before.
        """
        digest, good, position = hashlib.sha256(), (0, hashlib.sha256()), 0
        marks = self._marks.get(entry.path, {}) | {entry.length: entry.sha256}
        # What cannot be read is made again: this disk may have lost it.
        with contextlib.suppress(OSError, IntegrityError), RandomReader(self.tree / entry.path) as reader:
            # A file with another name may belong to a version: it must not be written to.
            if reader.links > 1:
                return good
            for length in sorted(length for length in marks if length <= min(reader.length, entry.length)):
                for piece in reader.pieces(position, length - position):
                    digest.update(piece)
                if digest.hexdigest() != marks[length]:
                    break
                good, position = (length, digest.copy()), length
        return good

    def mark(self, stream: WritableFile, entry: FileEntry) -> None:
        """Note durably that the beginning of a file, written to `stream`, is as `entry` says."""
        if entry.path not in self._marks:
            self._marks[entry.path] = {}
            for folder in (self.tree / entry.path).relative_to(self._folder).parents:
                self._disk.sync_folder(self._folder / folder)
        # What is claimed must be there first: the journal may reach the disk by itself.
        stream.sync()
        self._journal.write(canonical_json(entry.model_dump(mode="json")) + b"\n")
        self._journal.sync()

    def remove(self) -> None:
        """Remove the whole folder."""
        self._disk.remove(self._folder)

    def _clear(self) -> None:
        # The journal goes first: what lies here without one is of no use.
        for path in (self._journal_path, self.tree):
            if path.is_symlink() or path.exists():
                self._disk.remove(path)

    def _length_of(self, entry: FileEntry) -> int:
        try:
            return (self.tree / entry.path).lstat().st_size
        except OSError:
            return 0

    def _read_journal(self) -> None:
        try:
            with RandomReader(self._journal_path) as reader:
                raw = reader.read_at(0, min(reader.length, _MAX_JOURNAL_BYTES))
        except (OSError, IntegrityError):
            return
        lines = raw.splitlines(keepends=True)
        if not lines or lines[0] != self._first_line:
            return
        self._good_length = len(lines[0])
        for line in lines[1:]:
            try:
                entry = FileEntry.model_validate_json(line)
            except ValidationError:
                return
            if not line.endswith(b"\n"):
                return
            self._marks.setdefault(entry.path, {})[entry.length] = entry.sha256
            self._good_length += len(line)

    def _remove_strangers(self, files: Collection[FileEntry]) -> None:
        """What was not asked for must not be published; it may be there after someone wrote to this folder."""
        expected = {entry.path for entry in files}
        folders = {str(parent) for path in expected for parent in PurePosixPath(path).parents}
        for folder, below, inside in os.walk(self.tree):
            for name in (*below, *inside):
                path = Path(folder, name)
                wanted = folders if name in below and not path.is_symlink() else expected
                if path.relative_to(self.tree).as_posix() not in wanted:
                    self._disk.remove(path)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder alone; the kernel lets go of it however this process ends.

    Raises:
        StorageError: Another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"another process works in {folder}; wait for its end, then try again") from None
        yield
    finally:
        os.close(descriptor)
