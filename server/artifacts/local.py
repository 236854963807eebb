"""The artifact store in a folder of this machine."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from server.artifacts.store import MAX_IN_MEMORY, StoredArtifact, holds, read_bytes, require_digest, require_length
from server.errors import ArtifactMissingError, StorageError
from server.files import make_folder, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CHUNK_BYTES: Final = 1024 * 1024


class LocalArtifactStore:
    """Artifacts as files under ``folder/<first two digits>/<digest>``, mode 0444.

    Files are read-only because trees are rebuilt from them by hard link: writing into such a tree would change the
    store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)

    def put_file(self, source: Path) -> str:
        """Store a copy of ``source``, hashed while it is copied; see `ArtifactStore.put_file`."""
        try:
            with source.open("rb") as file:
                return self._put(lambda: file.read(_CHUNK_BYTES))
        except OSError as error:
            raise StorageError(f"Could not store {source}: {error.strerror or error}.") from error

    def put_bytes(self, content: bytes) -> str:
        """Store ``content``; see `ArtifactStore.put_bytes`."""
        return self.put_chunks(iter([content]))

    def put_chunks(self, chunks: Iterator[bytes]) -> str:
        """Store what arrives piece by piece.

        Raises:
            StorageError: The disk refused; nothing is left behind.
        """
        try:
            return self._put(lambda: next(chunks, b""))
        except OSError as error:
            raise StorageError(f"Could not write below {self.folder}: {error.strerror or error}.") from error

    def has(self, digest: str) -> bool:
        """Whether something is stored under ``digest``."""
        return holds(self, digest)

    def length(self, digest: str) -> int:
        """How many bytes are stored under ``digest``; see `ArtifactStore.length`."""
        place = self._place(digest)
        try:
            return place.stat().st_size
        except FileNotFoundError:
            raise ArtifactMissingError(f"The artifact store has no {digest}. Restore it from a backup.") from None
        except OSError as error:
            raise StorageError(f"Could not read {place}: {error.strerror or error}.") from error

    def path(self, digest: str, *, length: int | None = None) -> Path:
        """The stored file; its size is checked against ``length`` bytes when given.

        Raises:
            ArtifactMissingError: Nothing is stored under ``digest``.
            ArtifactDamagedError: The file is not ``length`` bytes long.
        """
        require_length(self, digest, self.length(digest) if length is None else length)
        return self._place(digest)

    def read_bytes(self, digest: str, *, max_bytes: int = MAX_IN_MEMORY) -> bytes:
        """The stored bytes in memory, hash-checked; see `read_bytes`."""
        return read_bytes(self, digest, max_bytes=max_bytes)

    def chunks(self, digest: str, *, first: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The stored bytes, piece by piece; see `ArtifactStore.chunks`."""
        left = self.length(digest) - first if length is None else length
        try:
            with self._place(digest).open("rb") as file:
                file.seek(first)
                while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise StorageError(f"Could not read {self._place(digest)}: {error.strerror or error}.") from error

    def export(self, digest: str, destination: Path, *, length: int) -> None:
        """Make the file ``destination``, by hard link where the disk has them; see `ArtifactStore.export`."""
        source = self.path(digest, length=length)
        try:
            try:
                os.link(source, destination)
            except OSError:
                # Another disk, or one without hard links.
                shutil.copyfile(source, destination)
                with destination.open("rb") as file:
                    os.fsync(file.fileno())
                sync_folder(destination.parent)
        except OSError as error:
            raise StorageError(f"Could not write {destination}: {error.strerror or error}.") from error

    def link(self, digest: str) -> str | None:  # noqa: ARG002 - of the protocol
        """None: a folder has no URLs."""
        return None

    def everything(self) -> Iterator[StoredArtifact]:
        """All that is stored; see `ArtifactStore.everything`."""
        for place in sorted(self.folder.glob("??/*")):
            try:
                facts = place.stat()
            except FileNotFoundError:
                continue
            yield StoredArtifact(digest=place.name, length=facts.st_size, stored_at=_time_of(facts))

    def remove(self, digest: str, *, stored_before: datetime) -> bool:
        """Forget an artifact; see `ArtifactStore.remove`."""
        place = self._place(digest)
        try:
            if _time_of(place.stat()) >= stored_before:
                return False
            place.unlink()
            sync_folder(place.parent)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise StorageError(f"Could not remove {place}: {error.strerror or error}.") from error
        return True

    def abandoned(self, *, before: datetime) -> tuple[str, ...]:
        """Temporary files of writes that were cut off; see `ArtifactStore.abandoned`."""
        return tuple(sorted(path.name for path in self._abandoned(before)))

    def remove_abandoned(self, *, before: datetime) -> None:
        """Remove exactly those."""
        for path in self._abandoned(before):
            path.unlink(missing_ok=True)

    def ping(self) -> None:
        """Look into the folder; see `ArtifactStore.ping`."""
        if not os.access(self.folder, os.R_OK | os.X_OK):
            raise StorageError(f"The artifact store {self.folder} cannot be read. Check that its disk is there.")

    def _abandoned(self, before: datetime) -> list[Path]:
        return [path for path in self.folder.glob(".*.tmp") if _time_of(path.stat()) < before]

    def _place(self, digest: str) -> Path:
        return self.folder / require_digest(digest)[:2] / digest

    def _put(self, read: Callable[[], bytes]) -> str:
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        sha256 = hashlib.sha256()
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "wb") as file:
                while chunk := read():
                    sha256.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            place = self._place(sha256.hexdigest())
            make_folder(place.parent)
            sync_folder(self.folder)
            # Also when the digest is known already: this heals a copy that the disk has damaged.
            temporary.replace(place)
            sync_folder(place.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return sha256.hexdigest()


def _time_of(facts: os.stat_result) -> datetime:
    return datetime.fromtimestamp(facts.st_mtime, UTC)
