"""What every artifact store can do: bytes by their sha256, durable before the digest is handed out."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from server.errors import ArtifactDamagedError, ArtifactMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

MAX_IN_MEMORY: Final = 1024 * 1024 * 1024
"""Bytes that `read_bytes` takes into memory when nobody says less."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """One artifact as the store lists it; putting it again makes it as new."""

    digest: str
    length: int
    stored_at: datetime


class ArtifactStore(Protocol):
    """Content-addressed bytes. A digest is 64 lower-case hex digits of sha256."""

    def put_file(self, source: Path) -> str:
        """Store a copy of ``source`` in constant memory; returns its digest.

        Raises:
            StorageError: ``source`` cannot be read or the store refused; nothing is left behind.
        """
        ...

    def put_bytes(self, content: bytes) -> str:
        """Store ``content``; returns its digest.

        Raises:
            StorageError: The store refused; nothing is left behind.
        """
        ...

    def has(self, digest: str) -> bool:
        """Whether something is stored under ``digest``."""
        ...

    def read_bytes(self, digest: str, *, max_bytes: int = ...) -> bytes:
        """The stored bytes in memory, hash-checked.

        Raises:
            ArtifactMissingError: Nothing is stored under ``digest``.
            ArtifactDamagedError: The bytes are others than those stored, or more than ``max_bytes``.
        """
        ...

    def length(self, digest: str) -> int:
        """How many bytes are stored under ``digest``.

        Raises:
            ArtifactMissingError: Nothing is.
        """
        ...

    def chunks(self, digest: str, *, first: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The stored bytes from ``first`` on, ``length`` of them or all, piece by piece and unchecked.

        Raises:
            ArtifactMissingError: Nothing is stored under ``digest``; at the first piece.
        """
        ...

    def export(self, digest: str, destination: Path, *, length: int) -> None:
        """Make the read-only file ``destination`` of an artifact; on one disk it may be the store's own file.

        Raises:
            ArtifactMissingError, ArtifactDamagedError: There are no such bytes, or others than ``length``.
            StorageError: The disk refused.
        """
        ...

    def link(self, digest: str) -> str | None:
        """A URL from which anybody can download the artifact for a short time; None where there are none.

        Raises:
            StorageError: It cannot be signed.
        """
        ...

    def everything(self) -> Iterator[StoredArtifact]:
        """All that is stored, in the order of the digests."""
        ...

    def remove(self, digest: str, *, stored_before: datetime) -> bool:
        """Forget an artifact, unless it was put (again) since then; returns whether it is gone."""
        ...

    def abandoned(self, *, before: datetime) -> tuple[str, ...]:
        """What cut-off writes left behind before then, and copies that can be made again; by name."""
        ...

    def remove_abandoned(self, *, before: datetime) -> None:
        """Remove exactly that."""
        ...

    def ping(self) -> None:
        """Ask the store for something small.

        Raises:
            StorageError: It does not answer.
        """
        ...


def require_digest(digest: str) -> str:
    """The digest itself: it may come from a caller, and nothing but hex digits ever becomes part of a path.

    Raises:
        ArtifactMissingError: It is none.
    """
    if not _DIGEST.fullmatch(digest):
        raise ArtifactMissingError(f"{digest[:80]!r} is not a sha256 digest (64 lower-case hex digits).")
    return digest


def require_length(store: ArtifactStore, digest: str, expected: int) -> None:
    """Refuse an artifact that is missing or has another length.

    Raises:
        ArtifactMissingError, ArtifactDamagedError: It is.
    """
    if (found := store.length(digest)) != expected:
        raise ArtifactDamagedError(
            f"Artifact {digest} has {found} bytes instead of {expected}. Restore it from a backup."
        )


def read_bytes(store: ArtifactStore, digest: str, *, max_bytes: int = MAX_IN_MEMORY) -> bytes:
    """Stored bytes in memory, hash-checked.

    Raises:
        ArtifactMissingError: Nothing is stored under ``digest``.
        ArtifactDamagedError: The bytes are others than those stored, or more than ``max_bytes``.
    """
    content = bytearray()
    for chunk in store.chunks(digest):
        content += chunk
        if len(content) > max_bytes:
            raise ArtifactDamagedError(f"Artifact {digest} is longer than the {max_bytes} bytes that were expected.")
    if hashlib.sha256(content).hexdigest() != digest:
        raise ArtifactDamagedError(f"Artifact {digest} holds other bytes than stored. Restore it from a backup.")
    return bytes(content)


def holds(store: ArtifactStore, digest: str) -> bool:
    """Whether something is stored under ``digest``.

    Raises:
        ArtifactMissingError: It is no digest.
    """
    require_digest(digest)
    try:
        store.length(digest)
    except ArtifactMissingError:
        return False
    return True


def is_whole(store: ArtifactStore, digest: str) -> bool:
    """Whether the stored bytes still have the digest that they are stored under; reads all of them.

    Raises:
        ArtifactMissingError: Nothing is stored under ``digest``.
    """
    sha256 = hashlib.sha256()
    for chunk in store.chunks(digest):
        sha256.update(chunk)
    return sha256.hexdigest() == digest
