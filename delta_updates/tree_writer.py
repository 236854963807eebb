"""Write the files of a target into a work folder, each checked against its hash while it is written."""

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from delta_updates import unfinished
from delta_updates.codecs import CODECS, CodecName
from delta_updates.disk import Disk, WritableFile
from delta_updates.errors import IntegrityError
from delta_updates.manifest import FileEntry
from delta_updates.package import PackagedFile, PackageReader, Record, hash_of_made
from delta_updates.reading import OldBytes, RandomReader
from delta_updates.sources import source_of
from delta_updates.unfinished import Unfinished
from delta_updates.workers import in_order

if TYPE_CHECKING:
    from hashlib import _Hash

_LINKS_DO_NOT_WORK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class Task:
    """What one record makes, without the first `skipped` bytes.

    `source` is the file that it starts from, and `old` what it needs of it; a copy is read only when it is written.
    """

    record: Record
    source: OldBytes | None
    old: bytes
    skipped: int = 0

    def content(self) -> Iterable[bytes]:
        """Return the bytes in pieces.

        Raises:
            PackageFormatError: The record does not make such bytes.
            IntegrityError: They are others than the package says (of a copy: after the last piece).
        """
        if self.record.codec is CodecName.SAME and self.source is not None:
            return self._copied(self.source)
        made = CODECS[self.record.codec].decode(self.record.encoded, self.old, self.record.kind, self.record.length)
        self._check(hash_of_made((made,)))
        return (made[self.skipped :] if self.skipped else made,)

    def _copied(self, source: OldBytes) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for piece in self._copied_from(source):
            digest.update(piece)
            yield piece
        # What was copied before the cut is in the hash of the file.
        if not self.skipped:
            self._check(digest.digest())

    def _check(self, made: bytes) -> None:
        if not made.startswith(self.record.made):
            raise IntegrityError(
                f"a record of codec {self.record.codec.name} makes other bytes than its package says; do not use them"
            )

    def _copied_from(self, source: OldBytes) -> Iterator[bytes]:
        rest = self.skipped
        for part in self.record.parts:
            skipped = min(rest, part.length)
            rest -= skipped
            yield from source.pieces(part.offset + skipped, part.length - skipped)


class TreeWriter:
    """Writes the files of a target, and keeps what an apply that was cut off had made of them.

    Attributes:
        bytes_written, bytes_resumed, bytes_linked, files_linked: What became of the target's bytes.
    """

    def __init__(
        self,
        work: Unfinished,
        sources: dict[str, RandomReader],
        *,
        workers: int,
        disk: Disk,
        on_progress: Callable[[int], None],
    ) -> None:
        self._work = work
        self._sources = sources
        self._workers = workers
        self._disk = disk
        self._on_progress = on_progress
        # A set that keeps its order: versions of strangers may have thousands.
        self._folders = dict.fromkeys([work.tree])
        self.bytes_written = 0
        self.bytes_resumed = 0
        self.bytes_linked = 0
        self.files_linked = 0

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those made or found, each after the one it lies in."""
        return tuple(self._folders)

    def write(self, packaged: PackagedFile, reader: PackageReader) -> None:
        """Make the next file of the package.

        Raises:
            PackageFormatError: Its records are damaged.
            IntegrityError: What came out is not what was promised.
            OSError: The disk failed.
        """
        entry = packaged.file
        path = self._work.tree / entry.path
        self._make_folders(path.parent)
        source = source_of(packaged, self._sources)
        if packaged.method == "same" and isinstance(source, RandomReader) and self._link(source, path):
            self.files_linked += 1
            self.bytes_linked += entry.length
            self._tell()
            return
        kept, digest = self._work.verified(entry)
        self.bytes_resumed += kept
        self._tell()
        if packaged.method == "same" and source is not None:
            content = source.pieces(kept, entry.length - kept)
        else:
            tasks = _tasks(reader.records(packaged), source, kept)
            content = (part for pieces in in_order(Task.content, tasks, workers=self._workers) for part in pieces)
        self._write_content(path, entry, content, kept, digest)

    def _make_folders(self, folder: Path) -> None:
        if folder not in self._folders:
            self._make_folders(folder.parent)
            if not folder.is_dir():
                self._disk.remove(folder)
                self._disk.make_folder(folder)
            self._folders[folder] = None

    def _link(self, source: RandomReader, path: Path) -> bool:
        """Return whether `path` is now the very file that was checked."""
        if path.is_symlink() or path.exists():
            if _identity(path) != source.identity:
                # A copy that was cut off: links do not work here.
                return False
            self._disk.remove(path)
        try:
            self._disk.link(source.path, path)
        except OSError as error:
            if error.errno not in _LINKS_DO_NOT_WORK:
                raise
            return False
        if _identity(path) == source.identity:
            return True
        # Someone replaced the source's file after it was checked; the open file is still the checked one.
        self._disk.remove(path)
        return False

    def _write_content(
        self, path: Path, entry: FileEntry, content: Iterator[bytes], kept: int, digest: "_Hash"
    ) -> None:
        length = marked = kept
        with contextlib.closing(self._open(path, kept)) as stream:
            for part in content:
                stream.write(part)
                digest.update(part)
                length += len(part)
                self.bytes_written += len(part)
                self._tell()
                if length - marked >= unfinished.CHECKPOINT_BYTES and length < entry.length:
                    marked = length
                    beginning = FileEntry(path=entry.path, length=length, sha256=digest.hexdigest())
                    self._work.mark(stream, beginning)
            # Also what was kept whole: its content may have been read from memory, and not be on the disk yet.
            stream.sync()
        if (length, digest.hexdigest()) != (entry.length, entry.sha256):
            raise IntegrityError(f"{entry.path!r} came out as {digest.hexdigest()}, not {entry.sha256}; do not use it")

    def _open(self, path: Path, kept: int) -> WritableFile:
        if kept:
            return self._disk.append(path, kept)
        if path.is_symlink() or path.exists():
            self._disk.remove(path)
        return self._disk.create(path)

    def _tell(self) -> None:
        self._on_progress(self.bytes_written + self.bytes_resumed + self.bytes_linked)


def _tasks(records: Iterator[Record], source: OldBytes | None, kept: int) -> Iterator[Task]:
    """Yield what is left to do; records of what is kept are read and checked, but not unpacked."""
    for record in records:
        skipped = min(kept, record.length)
        kept -= skipped
        if skipped < record.length:
            yield Task(record, source, old_bytes(record, source), skipped)


def old_bytes(record: Record, source: OldBytes | None) -> bytes:
    """Return what the record starts from; a copy may be long, and is read when it is written."""
    if source is None or record.codec is CodecName.SAME:
        return b""
    return b"".join(source.read_at(part.offset, part.length) for part in record.parts)


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
