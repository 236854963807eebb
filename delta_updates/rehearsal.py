"""What an in-place apply tries before it changes anything, so that afterwards only the disk can fail."""

import hashlib
from pathlib import Path

from delta_updates.disk import Disk
from delta_updates.errors import IntegrityError, SourceMismatchError, StorageError
from delta_updates.moves import Moves
from delta_updates.package import PackageReader
from delta_updates.sources import needed_files, open_sources, source_of
from delta_updates.tree_writer import Task, old_bytes


def rehearse(tree: Path, reader: PackageReader, moves: Moves, *, max_scratch_bytes: int, disk: Disk) -> None:
    """Check that `tree` can become the target where it lies; nothing is written.

    Raises:
        PackageFormatError: The package is damaged.
        SourceMismatchError: The tree is not what the package starts from.
        IntegrityError: The target would not be what the package promises.
        StorageError: Too little scratch is allowed, too little room is left, or a file is not only this tree's.
        OSError: The disk failed.
    """
    if moves.scratch_bytes > max_scratch_bytes:
        raise StorageError(
            f"{moves.scratch_bytes} bytes of scratch are needed to apply in place, {max_scratch_bytes} are allowed; "
            "allow more, or make room and apply beside the source"
        )
    lengths = {path: entry.length for path, entry in needed_files(reader.header).items()}
    _require_own_storage(tree, reader, moves, lengths)
    _apply_without_writing(tree, reader)
    _require_room(tree, reader, moves, lengths, disk)


def _require_own_storage(tree: Path, reader: PackageReader, moves: Moves, lengths: dict[str, int]) -> None:
    """Refuse to change what is not only this tree's."""
    changed = {number for kind, number in (chunk.writes.place for chunk in moves.chunks) if kind == "old"}
    for packaged, host in zip(reader.header.files, moves.hosts, strict=True):
        if host is not None and packaged.file.length < lengths[moves.sources[host]]:
            changed.add(host)
    for number, name in enumerate(moves.sources):
        path = tree / name
        if any((tree / folder).is_symlink() for folder in Path(name).parents):
            raise SourceMismatchError(f"{path} lies behind a link; ask for the full package")
        if number in changed and path.is_file() and path.lstat().st_nlink > 1:
            raise StorageError(
                f"{path} shares its storage with another version, which changing it would damage; remove that "
                "version, or apply beside the source"
            )


def _apply_without_writing(tree: Path, reader: PackageReader) -> None:
    with open_sources(tree, reader.header) as sources:
        reader.rewind()
        for packaged in reader.header.files:
            source = source_of(packaged, sources)
            digest, length = hashlib.sha256(), 0
            for record in reader.records(packaged):
                for part in Task(record, source, old_bytes(record, source)).content():
                    digest.update(part)
                    length += len(part)
            made = (length, digest.hexdigest())
            # Of an unchanged file the source's own hash was compared.
            if packaged.method != "same" and made != (packaged.file.length, packaged.file.sha256):
                raise IntegrityError(f"{packaged.file.path!r} would come out as {made[1]}; do not use this package")


def _require_room(tree: Path, reader: PackageReader, moves: Moves, lengths: dict[str, int], disk: Disk) -> None:
    needed = moves.scratch_bytes
    for packaged, host in zip(reader.header.files, moves.hosts, strict=True):
        needed += max(0, packaged.file.length - (0 if host is None else lengths[moves.sources[host]]))
    free = disk.free_bytes(tree.parent)
    if reader.header.source_hash is None and tree.is_dir():
        # A full package needs nothing of what is here: all of it goes first.
        free += sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file())
    if needed > free:
        raise StorageError(f"{needed} bytes are needed to apply in place, {free} are free; free some space")
