"""The journal of an in-place apply: what is done for certain, and the bytes that a step was about to write.

```
FOLDER/
  journal     a line for each thing that is done: canonical JSON, a space, 16 digits of its SHA-256
  redo        what the step under way writes, if it overwrites what it reads
  stash-N     what chunk N will read, and something else will have overwritten by then
```

A line is only ever added when what it says is on stable storage, and synced before anything that relies on it. Since
lines decide what is not done again, each has a hash: from the first that is torn, the journal is not believed.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from delta_updates.disk import Disk, WritableFile
from delta_updates.errors import IntegrityError
from delta_updates.manifest import canonical_json
from delta_updates.reading import RandomReader
from delta_updates.unfinished import alone_in

_MAX_JOURNAL_BYTES = 64 << 20
_CHECK_DIGITS = 16


class Entry(BaseModel):
    """One line.

    `begun`: the package with this SHA-256 will be applied. `ready`: the redo bytes of this step have this SHA-256.
    `done`: this step is. `verified`: the whole target is made, and hashed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: Literal["begun", "ready", "done", "verified"]
    step: int = -1
    sha256: str = ""

    def to_line(self) -> bytes:
        """Return the line with its check digits."""
        raw = canonical_json(self.model_dump())
        return raw + b" " + hashlib.sha256(raw).hexdigest()[:_CHECK_DIGITS].encode() + b"\n"


class StepJournal:
    """The journal in `folder`; a context manager that lets nobody else work with it.

    Attributes:
        package: SHA-256 of the package that it is about; None when there is no journal.
        is_verified, steps_done: How far it came.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder
        self._path = folder / "journal"
        self._redo_path = folder / "redo"
        self._disk = disk
        self._stack = contextlib.ExitStack()
        self._stream: WritableFile | None = None
        self._forget()

    def _forget(self) -> None:
        self.package: str | None = None
        self.is_verified = False
        self.steps_done = 0
        self._ready: Entry | None = None
        self._good_length = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._folder.is_dir():
                stack.enter_context(alone_in(self._folder))
            for entry in self._read():
                self._believe(entry)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, package: str) -> None:
        """Start anew, about this package."""
        if not self._folder.is_dir():
            self._disk.make_folder(self._folder)
            self._stack.enter_context(alone_in(self._folder))
            self._disk.sync_folder(self._folder.parent)
        self.discard()
        self._stream = self._disk.create(self._path)
        self._stack.callback(self._stream.close)
        self._disk.sync_folder(self._folder)
        self.note(Entry(what="begun", sha256=package))

    def note(self, entry: Entry) -> None:
        """Write a line durably."""
        if self._stream is None:
            self._stream = self._disk.append(self._path, self._good_length)
            self._stack.callback(self._stream.close)
        self._stream.write(entry.to_line())
        self._stream.sync()
        self._believe(entry)

    def discard(self) -> None:
        """Remove the journal and what belongs to it; of others' files in the folder nothing is touched."""
        # The journal goes first: without it the others are of no use, but not the other way round.
        for path in (self._path, self._redo_path, *sorted(self._folder.glob("stash-*"))):
            if path.is_symlink() or path.exists():
                self._disk.remove(path)
        self._forget()

    def close_folder(self) -> None:
        """Remove the folder as well, if it is empty."""
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._disk.remove(self._folder)

    # --- scratch

    def keep_redo(self, step: int, contents: Sequence[bytes]) -> None:
        """Make durable what a step is about to write."""
        digest = hashlib.sha256()
        is_new = not self._redo_path.exists()
        with contextlib.closing(self._disk.edit(self._redo_path)) as stream:
            offset = 0
            for content in contents:
                stream.write_at(offset, content)
                digest.update(content)
                offset += len(content)
            stream.sync()
        if is_new:
            self._disk.sync_folder(self._folder)
        self.note(Entry(what="ready", step=step, sha256=digest.hexdigest()))

    def redo(self, step: int, lengths: Sequence[int]) -> list[bytes] | None:
        """Return what the step was about to write, or None when it must be computed (again).

        Raises:
            IntegrityError: The disk lost what it had said was stable.
        """
        if self._ready is None or self._ready.step != step:
            return None
        with RandomReader(self._redo_path) as reader:
            raw = reader.read_at(0, sum(lengths))
        if hashlib.sha256(raw).hexdigest() != self._ready.sha256:
            raise IntegrityError(f"{self._redo_path} was damaged; install the full package")
        view, contents = memoryview(raw), []
        for length in lengths:
            contents.append(bytes(view[:length]))
            view = view[length:]
        return contents

    def stash_path(self, chunk: int) -> Path:
        """Return where the bytes that a chunk will read are kept."""
        return self._folder / f"stash-{chunk}"

    def keep_stash(self, chunk: int, content: bytes) -> None:
        """Store what a chunk will read; `settle_stashes` makes it durable."""
        path = self.stash_path(chunk)
        self._disk.remove(path)
        with contextlib.closing(self._disk.create(path)) as stream:
            stream.write(content)
            stream.sync()

    def settle_stashes(self) -> None:
        """Make the names of what was stashed durable."""
        self._disk.sync_folder(self._folder)

    def drop_stash(self, chunk: int) -> None:
        """Remove what a chunk needs no more."""
        path = self.stash_path(chunk)
        if path.exists():
            self._disk.remove(path)

    # --- reading

    def _read(self) -> Iterator[Entry]:
        try:
            with RandomReader(self._path) as reader:
                raw = reader.read_at(0, min(reader.length, _MAX_JOURNAL_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return
        for line in raw.splitlines(keepends=True):
            try:
                entry = Entry.model_validate_json(line.rpartition(b" ")[0])
            except ValidationError:
                return
            if line != entry.to_line():
                return
            yield entry
            self._good_length += len(line)

    def _believe(self, entry: Entry) -> None:
        match entry.what:
            case "begun":
                self.package = entry.sha256
            case "ready":
                self._ready = entry
            case "done":
                self.steps_done = entry.step + 1
                self._ready = None
            case "verified":
                self.is_verified = True
