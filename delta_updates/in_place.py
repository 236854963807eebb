"""Turn a source tree into its target where it lies, for devices without room for both.

The tree leaves its place before the first byte changes, and comes back when it is the whole, hashed target: between
the two nobody can mistake it for a version. What could still go wrong is tried before: the package is applied once
without writing anything, so that from then on only the disk can fail, and then running it again goes on.

```
.NAME.changing/
  old/      the source, as its bytes turn into the target's
  new/      files of the target that are in no old file's storage, and in the end all of them
```

README.md says why this is safe at every operation.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delta_updates.apply import DEFAULT_MAX_TARGET_BYTES, ApplyProgress, check_promise
from delta_updates.disk import Disk, EditableFile, LocalDisk, disk_errors
from delta_updates.errors import IntegrityError, SourceMismatchError, StorageError
from delta_updates.manifest import scan_tree, tree_hash, verify_tree
from delta_updates.moves import Chunk, Moves, Place, Step, plan_moves
from delta_updates.package import PackageReader
from delta_updates.reading import RandomReader
from delta_updates.rehearsal import rehearse
from delta_updates.step_journal import Entry, StepJournal
from delta_updates.tree_writer import Task

DEFAULT_MAX_SCRATCH_BYTES = 64 << 20


class InPlaceResult(BaseModel):
    """What an in-place apply did.

    `bytes_moved` is what had to change place or content (none: it was the target already), `scratch_bytes` the most
    that lay in the journal's folder, and `steps_resumed` what calls that were cut off had done.
    """

    model_config = ConfigDict(frozen=True)

    target_hash: str
    seconds: float
    bytes_moved: int
    scratch_bytes: int
    steps_resumed: int


def apply_in_place(
    tree: Path,
    package: Path,
    journal_folder: Path,
    *,
    expected_target_hash: str,
    max_target_bytes: int = DEFAULT_MAX_TARGET_BYTES,
    max_scratch_bytes: int = DEFAULT_MAX_SCRATCH_BYTES,
    disk: Disk | None = None,
    on_progress: ApplyProgress | None = None,
) -> InPlaceResult:
    """Turn the source in `tree` into the package's target.

    Cut off at any moment, calling it again with the same package always ends in the complete target; until then there
    is no `tree` (`changing_folder` says where it is). Every error that has to do with the package or the source comes
    before anything has changed. It takes the time of two applies, and writes most changed bytes twice.

    Args:
        tree: The version to start from; nobody may read it meanwhile.
        package: The package's file. A full package needs no source: what lies at `tree` makes room for it.
        journal_folder: Made when missing; on a disk that survives a power cut. Never another apply's.
        expected_target_hash: The tree hash from the signed manifest.
        max_target_bytes: Refuse a package that makes more.
        max_scratch_bytes: What may lie in `journal_folder` at a time.
        disk: What is written through; the real disk when None.
        on_progress: Called with the bytes of the target that are done, and all of them.

    Raises:
        PackageFormatError: Drop these bytes; nothing has changed.
        SourceMismatchError: The source is not what the package starts from, or it is half-way to another target: get
            the full package.
        IntegrityError: The result would not be what was expected, and nothing has changed; or the disk damaged it.
        StorageError: The disk failed or is full: call it again. Or, before anything has changed, `max_scratch_bytes` is
            too little, or a file shares its storage with another version.
    """
    started = time.monotonic()
    with disk_errors(f"applying {package.name} in place"), contextlib.ExitStack() as stack:
        reader = stack.enter_context(PackageReader(package))
        check_promise(reader.header, expected_target_hash, max_target_bytes)
        moves = plan_moves(reader)
        journal = stack.enter_context(StepJournal(journal_folder, disk or LocalDisk()))
        change = _Change(tree, reader, moves, journal, disk or LocalDisk(), on_progress)
        resumed = change.run(max_scratch_bytes)
    return InPlaceResult(
        target_hash=reader.header.target_hash,
        seconds=time.monotonic() - started,
        bytes_moved=0 if resumed is None else sum(chunk.length for chunk in moves.chunks),
        scratch_bytes=0 if resumed is None else moves.scratch_bytes,
        steps_resumed=resumed or 0,
    )


def changing_folder(tree: Path) -> Path:
    """Return where a tree lies while it is changed in place; no such folder: it is a version, or was never begun."""
    return tree.with_name(f".{tree.name}.changing")


@dataclass
class _Change:
    tree: Path
    reader: PackageReader
    moves: Moves
    journal: StepJournal
    disk: Disk
    on_progress: ApplyProgress | None

    def __post_init__(self) -> None:
        self.header = self.reader.header
        self.files = [packaged.file for packaged in self.header.files]
        self.folder = changing_folder(self.tree)
        self.old, self.new = self.folder / "old", self.folder / "new"
        self.done_bytes = self.header.target_bytes - sum(chunk.length for chunk in self.moves.chunks)

    def run(self, max_scratch_bytes: int) -> int | None:
        """Do what is left to do; return how many steps were done before, None when there was nothing to do."""
        fingerprint = self.reader.sha256()
        is_begun = self.journal.is_verified or self.old.exists()
        if self.journal.package != fingerprint or not is_begun:
            try:
                self._require_startable(max_scratch_bytes)
            except SourceMismatchError:
                if not self._is_there():
                    raise
                self._tidy()
                return None
            if self.folder.exists():
                self.disk.remove(self.folder)
            self.journal.begin(fingerprint)
        resumed = self.journal.steps_done
        if not (self.journal.is_verified and self.tree.exists()):
            self._leave_place()
            self._make()
            self._assemble()
        self._come_back()
        return resumed

    def _is_there(self) -> bool:
        """Return whether an earlier call did all of it, and only its answer was lost."""
        try:
            return tree_hash(scan_tree(self.tree)) == self.header.target_hash
        except (IntegrityError, StorageError):
            return False

    def _require_startable(self, max_scratch_bytes: int) -> None:
        if self.old.exists() and self.header.source_hash is not None:
            raise SourceMismatchError(
                f"{self.tree} is half-way to another target, in {self.folder}: use that package, or the full one"
            )
        rehearse(self.tree, self.reader, self.moves, max_scratch_bytes=max_scratch_bytes, disk=self.disk)

    # --- the change

    def _leave_place(self) -> None:
        if not self.old.exists():
            self._make_folders(self.folder)
            if self.tree.exists():
                self.disk.rename(self.tree, self.old)
            else:
                self.disk.make_folder(self.old)
            self.disk.sync_folder(self.folder)
        self.disk.sync_folder(self.tree.parent)

    def _make(self) -> None:
        self._make_room()
        with contextlib.ExitStack() as stack:
            storage = _Storage(self, stack)
            for number, step in enumerate(self.moves.steps):
                if number >= self.journal.steps_done:
                    self._do(number, step, storage)
                if not step.is_stash:
                    self.done_bytes += sum(self.moves.chunks[chunk].length for chunk in step.chunks)
                if self.on_progress:
                    self.on_progress(self.done_bytes, self.header.target_bytes)

    def _make_room(self) -> None:
        """Remove the files of the source that nothing is made from, and make the folders of the new ones."""
        self._make_folders(self.new)
        for path in sorted(self.old.rglob("*")):
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder and path.relative_to(self.old).as_posix() not in self.moves.sources:
                self.disk.remove(path)
        for entry, host in zip(self.files, self.moves.hosts, strict=True):
            if host is None:
                self._make_folders((self.new / entry.path).parent)

    def _make_folders(self, folder: Path) -> None:
        if not folder.is_dir():
            self._make_folders(folder.parent)
            self.disk.make_folder(folder)
            # Before anything of value is moved into it: a folder without a name takes all of it along.
            self.disk.sync_folder(folder.parent)

    def _do(self, number: int, step: Step, storage: "_Storage") -> None:
        chunks = [(chunk, self.moves.chunks[chunk]) for chunk in step.chunks]
        if step.is_stash:
            for chunk, planned in chunks:
                self.journal.keep_stash(chunk, storage.read(planned))
            self.journal.settle_stashes()
            self.journal.note(Entry(what="done", step=number))
            return
        contents = self.journal.redo(number, [planned.length for _, planned in chunks])
        if contents is None:
            contents = [self._content(chunk, planned, storage) for chunk, planned in chunks]
            if step.overlaps:
                self.journal.keep_redo(number, contents)
        for (_, planned), content in zip(chunks, contents, strict=True):
            storage.write(planned, content)
        storage.sync({planned.writes.place for _, planned in chunks})
        self.journal.note(Entry(what="done", step=number))
        for chunk, _ in chunks:
            self.journal.drop_stash(chunk)

    def _content(self, number: int, chunk: Chunk, storage: "_Storage") -> bytes:
        stashed = self.journal.stash_path(number)
        if stashed.exists():
            with RandomReader(stashed) as reader:
                old = reader.read_at(0, chunk.bytes_read)
        else:
            old = storage.read(chunk)
        if chunk.record is None:
            return old
        packaged = self.header.files[chunk.file]
        record = self.reader.record_at(chunk.record, packaged, packaged.file.length - chunk.offset)
        return b"".join(Task(record, None, old).content())

    # --- after it

    def _assemble(self) -> None:
        """Give every file its length and its place among the new ones, and hash them all."""
        for entry, host in zip(self.files, self.moves.hosts, strict=True):
            path = self.new / entry.path
            storage = path if host is None else self.old / self.moves.sources[host]
            if host is None and not path.exists():
                self.disk.create(path).close()
            if storage.exists() and storage.stat().st_size > entry.length:
                with contextlib.closing(self.disk.append(storage, entry.length)) as stream:
                    stream.sync()
            if host is not None and storage.exists():
                self._make_folders(path.parent)
                self.disk.rename(storage, path)
        folders = [self.new, *(path for path in sorted(self.new.rglob("*")) if path.is_dir())]
        for folder in reversed(folders):
            self.disk.sync_folder(folder)
        try:
            verify_tree(self.new, self.files)
        except IntegrityError as error:
            raise IntegrityError(f"the disk damaged what was written: {error}; install the full package") from error
        self.journal.note(Entry(what="verified"))

    def _come_back(self) -> None:
        if not self.tree.exists():
            self.disk.rename(self.new, self.tree)
        self.disk.sync_folder(self.tree.parent)
        self._tidy()

    def _tidy(self) -> None:
        """Remove what is left beside the target; the journal goes last."""
        if self.folder.exists():
            self.disk.remove(self.folder)
        self.journal.discard()
        self.journal.close_folder()


class _Storage:
    """The files that bytes are read from and written to, wherever they lie at the moment."""

    def __init__(self, change: _Change, stack: contextlib.ExitStack) -> None:
        self._change = change
        self._stack = stack
        self._readers: dict[Place, RandomReader] = {}
        self._writers: dict[Place, EditableFile] = {}

    def read(self, chunk: Chunk) -> bytes:
        return b"".join(self._reader(read.place).read_at(read.start, read.end - read.start) for read in chunk.reads)

    def write(self, chunk: Chunk, content: bytes) -> None:
        place = chunk.writes.place
        if place not in self._writers:
            path = self._path(place)
            is_new = not path.exists()
            self._writers[place] = self._change.disk.edit(path)
            self._stack.callback(self._writers[place].close)
            if is_new:
                self._sync_names(path.parent)
        self._writers[place].write_at(chunk.offset, content)

    def sync(self, places: set[Place]) -> None:
        for place in sorted(places):
            self._writers[place].sync()

    def _reader(self, place: Place) -> RandomReader:
        if place not in self._readers:
            self._readers[place] = self._stack.enter_context(RandomReader(self._path(place)))
        return self._readers[place]

    def _path(self, place: Place) -> Path:
        kind, number = place
        change = self._change
        return change.old / change.moves.sources[number] if kind == "old" else change.new / change.files[number].path

    def _sync_names(self, folder: Path) -> None:
        while folder != self._change.tree.parent:
            self._change.disk.sync_folder(folder)
            folder = folder.parent
