"""Make a target version from a source version and a package: streamed, checked, all or nothing."""

import contextlib
import errno
import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delta_updates.codecs import CODECS, CodecName
from delta_updates.disk import Disk, LocalDisk, disk_errors
from delta_updates.errors import IntegrityError, PackageLimitError, SourceMismatchError, StorageError
from delta_updates.manifest import FileEntry
from delta_updates.package import PackagedFile, PackageHeader, PackageReader, Record
from delta_updates.reading import RandomReader
from delta_updates.workers import in_order

DEFAULT_MAX_TARGET_BYTES = 64 << 30
_LINKS_DO_NOT_WORK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS}


class ApplyResult(BaseModel):
    """What applying did: the target's tree hash, seconds, bytes written and files linked instead of written."""

    model_config = ConfigDict(frozen=True)

    target_hash: str
    seconds: float
    bytes_written: int
    files_linked: int


def apply_package(
    source: Path | None,
    package: Path,
    target: Path,
    *,
    expected_target_hash: str,
    max_target_bytes: int = DEFAULT_MAX_TARGET_BYTES,
    workers: int = 1,
    disk: Disk | None = None,
) -> ApplyResult:
    """Make `target` from `source` and `package`; afterwards it is there completely and durably, or not at all.

    Work happens in a folder beside `target`, which an apply that was cut off may have left and the next one removes.
    Memory is constant. Files that did not change are hard links to the source's: never edit a version in place.

    Args:
        source: The version to start from; None for a full package.
        package: The package's file.
        target: Must not exist, or be an empty folder; its parent must exist.
        expected_target_hash: The tree hash from the signed manifest.
        max_target_bytes: Refuse a package that makes more.
        workers: How many chunks are computed at a time; each takes 15 to 80 MB.
        disk: What is written through; the real disk when None.

    Raises:
        PackageFormatError: Drop these bytes (PackageLimitError: they ask for too much).
        SourceMismatchError: The source is not what the package starts from: ask for the full package.
        IntegrityError: The result is not what was expected.
        StorageError: The disk failed, is full, or `target` is in the way.
    """
    started = time.monotonic()
    disk = disk or LocalDisk()
    with disk_errors(f"applying {package.name}"), contextlib.ExitStack() as stack:
        reader = stack.enter_context(PackageReader(package))
        _check_promise(reader.header, expected_target_hash, max_target_bytes)
        sources = stack.enter_context(_open_sources(source, reader.header))
        work = _make_room(target, reader.header, disk)
        try:
            writer = _TreeWriter(work, sources, workers, disk)
            for packaged in reader.header.files:
                writer.write(packaged, reader)
            reader.finish()
            _publish(work, target, writer.folders, disk)
        except BaseException:
            for leftover in (work, target):
                with contextlib.suppress(OSError):
                    disk.remove(leftover)
            raise
    return ApplyResult(
        target_hash=reader.header.target_hash,
        seconds=time.monotonic() - started,
        bytes_written=writer.bytes_written,
        files_linked=writer.files_linked,
    )


def work_folder(target: Path) -> Path:
    """Return where an unfinished apply of `target` lies."""
    return target.with_name(f".{target.name}.applying")


def _check_promise(header: PackageHeader, expected_target_hash: str, max_target_bytes: int) -> None:
    if header.target_hash != expected_target_hash:
        raise IntegrityError(
            f"package makes {header.target_hash}, but {expected_target_hash} is expected; do not use it"
        )
    if header.target_bytes > max_target_bytes:
        raise PackageLimitError(f"package makes {header.target_bytes} bytes; at most {max_target_bytes} are allowed")


@contextlib.contextmanager
def _open_sources(source: Path | None, header: PackageHeader) -> Iterator[dict[str, RandomReader]]:
    """Open every file of the source that is needed, and check each once, before anything is written."""
    needed: dict[str, FileEntry] = {}
    for packaged in header.files:
        if packaged.source and needed.setdefault(packaged.source.path, packaged.source) != packaged.source:
            raise SourceMismatchError(f"package needs two different files {packaged.source.path!r}; no source has both")
    if needed and source is None:
        raise SourceMismatchError(f"package starts from {header.source_hash}, but no source is given")
    with contextlib.ExitStack() as stack:
        readers: dict[str, RandomReader] = {}
        for path, entry in needed.items():
            readers[path] = stack.enter_context(_open_source((source or Path()) / path, entry))
        for path, entry in needed.items():
            if readers[path].sha256() != entry.sha256:
                raise SourceMismatchError(
                    f"{readers[path].path} is not the file that the package starts from (hash differs)"
                )
        yield readers


def _open_source(path: Path, entry: FileEntry) -> RandomReader:
    try:
        reader = RandomReader(path)
    except (FileNotFoundError, NotADirectoryError, IntegrityError) as error:
        raise SourceMismatchError(f"source has no file {entry.path!r}: {error}; ask for the full package") from error
    except OSError as error:
        # O_NOFOLLOW answers ELOOP for a link.
        if error.errno == errno.ELOOP:
            raise SourceMismatchError(f"{path} is a link; ask for the full package") from error
        raise
    if reader.length != entry.length:
        reader.close()
        raise SourceMismatchError(f"{path} has {reader.length} bytes, not {entry.length}; ask for the full package")
    return reader


def _make_room(target: Path, header: PackageHeader, disk: Disk) -> Path:
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise StorageError(f"{target} is in the way; remove it before applying")
    work = work_folder(target)
    disk.remove(work)
    to_write = sum(packaged.file.length for packaged in header.files if packaged.method != "same")
    free = disk.free_bytes(target.parent)
    if to_write > free:
        raise StorageError(
            f"{to_write} bytes are needed in {target.parent}, {free} are free; free some space and try again"
        )
    disk.make_folder(work)
    return work


def _publish(work: Path, target: Path, folders: list[Path], disk: Disk) -> None:
    """Names first, deepest first, then the one switch that makes the target appear."""
    for folder in reversed(folders):
        disk.sync_folder(folder)
    disk.rename(work, target)
    disk.sync_folder(target.parent)


class _TreeWriter:
    """Writes the files of a target under `root`, checking each."""

    def __init__(self, root: Path, sources: dict[str, RandomReader], workers: int, disk: Disk) -> None:
        self._root = root
        self._sources = sources
        self._workers = workers
        self._disk = disk
        self.folders = [root]
        self.bytes_written = 0
        self.files_linked = 0

    def write(self, packaged: PackagedFile, reader: PackageReader) -> None:
        path = self._root / packaged.file.path
        self._make_folders(path.parent)
        source = self._sources[packaged.source.path] if packaged.source else None
        if packaged.method == "same" and source is not None:
            if self._link(source, path):
                self.files_linked += 1
                return
            self._write_content(path, packaged.file, source.pieces())
        else:
            inputs = ((record, source, _old_bytes(record, source)) for record in reader.records(packaged))
            contents = in_order(_content, inputs, workers=self._workers)
            self._write_content(path, packaged.file, (part for content in contents for part in content))

    def _make_folders(self, folder: Path) -> None:
        if folder not in self.folders:
            self._make_folders(folder.parent)
            self._disk.make_folder(folder)
            self.folders.append(folder)

    def _link(self, source: RandomReader, path: Path) -> bool:
        """Return whether `path` is now the very file that was checked."""
        try:
            self._disk.link(source.path, path)
        except OSError as error:
            if error.errno not in _LINKS_DO_NOT_WORK:
                raise
            return False
        status = path.lstat()
        if (status.st_dev, status.st_ino) == source.identity:
            return True
        # Someone replaced the source's file after it was checked; the open file is still the checked one.
        self._disk.remove(path)
        return False

    def _write_content(self, path: Path, entry: FileEntry, content: Iterator[bytes]) -> None:
        digest = hashlib.sha256()
        length = 0
        with contextlib.closing(self._disk.create(path)) as stream:
            for part in content:
                stream.write(part)
                digest.update(part)
                length += len(part)
            stream.sync()
        if (length, digest.hexdigest()) != (entry.length, entry.sha256):
            raise IntegrityError(f"{entry.path!r} came out as {digest.hexdigest()}, not {entry.sha256}; do not use it")
        self.bytes_written += length


def _old_bytes(record: Record, source: RandomReader | None) -> bytes:
    """Return what the record starts from; a copy may be long, and is read when it is written."""
    if source is None or record.codec is CodecName.SAME:
        return b""
    return b"".join(source.read_at(part.offset, part.length) for part in record.parts)


def _content(task: tuple[Record, RandomReader | None, bytes]) -> Iterable[bytes]:
    record, source, old = task
    if record.codec is CodecName.SAME and source is not None:
        return (piece for part in record.parts for piece in source.pieces(part.offset, part.length))
    return (CODECS[record.codec].decode(record.encoded, old, record.kind, record.length),)
