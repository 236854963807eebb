"""Artifact store: bytes by their sha256. Whatever is put is durable before the digest is handed out."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from typing import TYPE_CHECKING, Protocol

from server.errors import ArtifactDamagedError, ArtifactMissingError, StorageError
from server.files import make_folder, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK_BYTES = 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtifactStore(Protocol):
    """Content-addressed bytes. A digest is 64 lower-case hex digits of sha256."""

    def put_file(self, source: Path) -> str:
        """Store a copy of ``source``; returns its digest."""
        ...

    def put_bytes(self, content: bytes) -> str:
        """Store ``content``; returns its digest."""
        ...

    def has(self, digest: str) -> bool:
        """Whether something is stored under ``digest``."""
        ...

    def path(self, digest: str, *, length: int | None = None) -> Path:
        """The stored file, read-only; its size is checked against ``length`` bytes when given."""
        ...

    def read_bytes(self, digest: str, *, max_bytes: int = ...) -> bytes:
        """The stored bytes in memory, hash-checked."""
        ...


class LocalArtifactStore:
    """Artifacts as files under ``folder/<first two digits>/<digest>``, mode 0444.

    Files are read-only because trees are rebuilt from them by hard link: writing into such a tree would change the
    store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)

    def put_file(self, source: Path) -> str:
        """Store a copy of ``source``, hashed while it is copied.

        Raises:
            StorageError: ``source`` cannot be read or the disk refused; nothing is left behind.
        """
        try:
            with source.open("rb") as file:
                return self._put(lambda: file.read(_CHUNK_BYTES))
        except OSError as error:
            raise StorageError(f"Could not store {source}: {error.strerror or error}.") from error

    def put_bytes(self, content: bytes) -> str:
        """Store ``content``.

        Raises:
            StorageError: The disk refused; nothing is left behind.
        """
        chunks = [content]
        try:
            return self._put(lambda: chunks.pop() if chunks else b"")
        except OSError as error:
            raise StorageError(f"Could not store {len(content)} bytes: {error.strerror or error}.") from error

    def has(self, digest: str) -> bool:
        """Whether something is stored under ``digest``."""
        return self._place(digest).is_file()

    def path(self, digest: str, *, length: int | None = None) -> Path:
        """The stored file.

        Raises:
            ArtifactMissingError: Nothing is stored under ``digest``.
            ArtifactDamagedError: The file is not ``length`` bytes long.
        """
        place = self._place(digest)
        try:
            found = place.stat().st_size
        except FileNotFoundError:
            raise ArtifactMissingError(f"The artifact store has no {digest}. Restore it from a backup.") from None
        except OSError as error:
            raise StorageError(f"Could not read {place}: {error.strerror or error}.") from error
        if length is not None and found != length:
            raise ArtifactDamagedError(
                f"Artifact {digest} has {found} bytes instead of {length}. Restore it from a backup."
            )
        return place

    def read_bytes(self, digest: str, *, max_bytes: int = 1024 * _CHUNK_BYTES) -> bytes:
        """The stored bytes in memory, hash-checked.

        Raises:
            ArtifactMissingError: Nothing is stored under ``digest``.
            ArtifactDamagedError: The bytes are others than those stored, or more than ``max_bytes``.
        """
        with self.path(digest).open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ArtifactDamagedError(f"Artifact {digest} is longer than the {max_bytes} bytes that were expected.")
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactDamagedError(f"Artifact {digest} holds other bytes than stored. Restore it from a backup.")
        return content

    def _place(self, digest: str) -> Path:
        # A digest may come from a caller: nothing but hex digits ever becomes part of a path.
        if not _DIGEST.fullmatch(digest):
            raise ArtifactMissingError(f"{digest[:80]!r} is not a sha256 digest (64 lower-case hex digits).")
        return self._folder / digest[:2] / digest

    def _put(self, read: Callable[[], bytes]) -> str:
        temporary = self._folder / f".{secrets.token_hex(8)}.tmp"
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
            sync_folder(self._folder)
            # Also when the digest is known already: this heals a copy that the disk has damaged.
            temporary.replace(place)
            sync_folder(place.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return sha256.hexdigest()
