"""The files of a source version that a package needs: each opened once and checked once, before anything is written."""

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

from delta_updates.errors import IntegrityError, SourceMismatchError
from delta_updates.known_hashes import KnownHashes
from delta_updates.manifest import FileEntry
from delta_updates.package import PackagedFile, PackageHeader
from delta_updates.reading import JoinedReader, OldBytes, RandomReader


@contextlib.contextmanager
def open_sources(
    source: Path | None, header: PackageHeader, hashes: KnownHashes | None = None
) -> Iterator[dict[str, RandomReader]]:
    """Yield the files that `header` needs by path, open and hashed (unless `hashes` knows them).

    Raises:
        SourceMismatchError: One is missing or another than the package starts from.
        OSError: The disk failed.
    """
    needed, hashes = needed_files(header), hashes or KnownHashes()
    if needed and source is None:
        raise SourceMismatchError(f"package starts from {header.source_hash}, but no source is given")
    with contextlib.ExitStack() as stack:
        readers: dict[str, RandomReader] = {}
        for path, entry in needed.items():
            readers[path] = stack.enter_context(open_source((source or Path()) / path, entry))
        for path, entry in needed.items():
            if hashes.of(readers[path]) != entry.sha256:
                raise SourceMismatchError(
                    f"{readers[path].path} is not the file that the package starts from (hash differs)"
                )
        yield readers


def needed_files(header: PackageHeader) -> dict[str, FileEntry]:
    """Return the source's files that `header` names, by path.

    Raises:
        SourceMismatchError: It names two different files of one path.
    """
    needed: dict[str, FileEntry] = {}
    for packaged in header.files:
        for entry in packaged.sources:
            if needed.setdefault(entry.path, entry) != entry:
                raise SourceMismatchError(f"package needs two different files {entry.path!r}; no source has both")
    return needed


def open_source(path: Path, entry: FileEntry) -> RandomReader:
    """Open the source's file `entry`, which lies at `path`, and check its length.

    Raises:
        SourceMismatchError: It is missing, not a file, a link, or of another length.
        OSError: The disk failed.
    """
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


def source_of(packaged: PackagedFile, readers: Mapping[str, RandomReader]) -> OldBytes | None:
    """Return what a file is made from, several files as one; None when that is the package alone."""
    found = [readers[entry.path] for entry in packaged.sources]
    return JoinedReader(found) if len(found) > 1 else next(iter(found), None)
