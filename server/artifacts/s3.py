"""The artifact store in a bucket of any service that speaks S3, through obstore."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from obstore import delete, get_range, head, put, sign
from obstore import list as list_objects
from obstore.exceptions import BaseError
from obstore.store import S3Store

from server.artifacts.local import LocalArtifactStore
from server.artifacts.store import MAX_IN_MEMORY, StoredArtifact, holds, read_bytes, require_digest
from server.errors import ArtifactDamagedError, ArtifactMissingError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

# One piece is what a download holds in memory; S3 takes parts of 5 MiB and more.
_PART_BYTES: Final = 8 * 1024 * 1024
_PARTS_AT_ONCE: Final = 2
_NO_OBJECT: Final = (FileNotFoundError,)
_FAILURES: Final = (BaseError, OSError, ValueError)
LINK_LIFETIME: Final = timedelta(minutes=15)


class S3ArtifactStore:
    """Artifacts as objects ``<prefix>/<first two digits>/<digest>``; trees are built from copies in ``cache``.

    Credentials come from where programs look for them: ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, a web
    identity token, or the instance.
    """

    def __init__(self, url: str, *, cache: Path, endpoint: str | None = None, region: str | None = None) -> None:
        """Name the bucket; nothing is asked of it yet.

        Args:
            url: ``s3://bucket/prefix``.
            cache: A folder for copies that trees are linked from.
            endpoint: Where a service other than Amazon's answers.
            region: The bucket's region.

        Raises:
            StorageError: The URL or a credential cannot be used.
        """
        self._url = url
        self._cache = LocalArtifactStore(cache)
        settings = {"endpoint": endpoint, "region": region}
        with self._told("open"):
            self._store = S3Store.from_url(
                url,
                config={name: value for name, value in settings.items() if value is not None},  # type: ignore[arg-type]
                client_options={"allow_http": bool(endpoint and endpoint.startswith("http://"))},
                retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=60)},
            )

    def put_file(self, source: Path) -> str:
        """Store a copy of ``source``, read twice: for its name and for its bytes; see `ArtifactStore.put_file`."""
        digest = hashlib.sha256()
        try:
            for chunk in _chunks_of(source):
                digest.update(chunk)
        except OSError as error:
            raise StorageError(f"Could not store {source}: {error.strerror or error}.") from error
        return self._put(digest.hexdigest(), _proven(_chunks_of(source), digest.hexdigest()))

    def put_bytes(self, content: bytes) -> str:
        """Store ``content``; see `ArtifactStore.put_bytes`."""
        return self._put(hashlib.sha256(content).hexdigest(), iter([content]))

    def has(self, digest: str) -> bool:
        """Whether something is stored under ``digest``."""
        return holds(self, digest)

    def length(self, digest: str) -> int:
        """How many bytes are stored under ``digest``; see `ArtifactStore.length`."""
        with self._told(digest):
            return head(self._store, _key(digest))["size"]

    def read_bytes(self, digest: str, *, max_bytes: int = MAX_IN_MEMORY) -> bytes:
        """The stored bytes in memory, hash-checked; see `read_bytes`."""
        return read_bytes(self, digest, max_bytes=max_bytes)

    def chunks(self, digest: str, *, first: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The stored bytes, one request a piece, each tried again by itself; see `ArtifactStore.chunks`."""
        stored = self.length(digest)
        end = stored if length is None else min(first + length, stored)
        for start in range(first, end, _PART_BYTES):
            with self._told(digest):
                chunk = get_range(self._store, _key(digest), start=start, length=min(_PART_BYTES, end - start))
            yield bytes(chunk)

    def export(self, digest: str, destination: Path, *, length: int) -> None:
        """Make the file ``destination`` from the copy in the cache; see `ArtifactStore.export`."""
        if not self._cache.has(digest):
            arrived = self._cache.put_chunks(self.chunks(digest))
            if arrived != digest:
                self._cache.path(arrived).unlink()
                raise ArtifactDamagedError(f"{self._url} holds other bytes under {digest}. Restore it from a backup.")
        self._cache.export(digest, destination, length=length)

    def link(self, digest: str) -> str:
        """A URL that anybody can download the artifact from for `LINK_LIFETIME`.

        Raises:
            StorageError: There are no credentials to sign it with.
        """
        with self._told(digest):
            return sign(self._store, "GET", _key(digest), LINK_LIFETIME)

    def everything(self) -> Iterator[StoredArtifact]:
        """All that is stored; see `ArtifactStore.everything`."""
        with self._told("a list"):
            for page in list_objects(self._store, chunk_size=1000):
                for entry in page:
                    yield StoredArtifact(
                        digest=entry["path"].rpartition("/")[2],
                        length=entry["size"],
                        stored_at=entry["last_modified"],
                    )

    def remove(self, digest: str, *, stored_before: datetime) -> bool:
        """Forget an artifact; see `ArtifactStore.remove`."""
        try:
            with self._told(digest):
                if head(self._store, _key(digest))["last_modified"] >= stored_before:
                    return False
                delete(self._store, _key(digest))
        except ArtifactMissingError:
            pass
        return True

    def abandoned(self, *, before: datetime) -> tuple[str, ...]:
        """Copies in the cache; uploads that were cut off are the bucket's own to expire (a lifecycle rule)."""
        copies = (copy.digest for copy in self._cache.everything() if copy.stored_at < before)
        return (*self._cache.abandoned(before=before), *copies)

    def remove_abandoned(self, *, before: datetime) -> None:
        """Remove exactly those."""
        self._cache.remove_abandoned(before=before)
        for copy in self._cache.everything():
            self._cache.remove(copy.digest, stored_before=before)

    def ping(self) -> None:
        """Ask for the first name; see `ArtifactStore.ping`."""
        with self._told("a list"):
            next(iter(list_objects(self._store, chunk_size=1)), None)

    def _put(self, digest: str, chunks: Iterator[bytes]) -> str:
        with self._told(digest):
            put(self._store, _key(digest), chunks, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
        return digest

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn the library's errors into the store's own; its messages hold addresses, not secrets."""
        try:
            yield
        except _NO_OBJECT as error:
            raise ArtifactMissingError(f"{self._url} has no {what}. Restore it from a backup.") from error
        except _FAILURES as error:
            reason = str(error).partition("\n")[0][:300]
            raise StorageError(f"{self._url} did not do as asked ({what}): {reason}") from error


def _key(digest: str) -> str:
    return f"{require_digest(digest)[:2]}/{digest}"


def _chunks_of(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while chunk := file.read(_PART_BYTES):
            yield chunk


def _proven(chunks: Iterator[bytes], digest: str) -> Iterator[bytes]:
    """The chunks, unless they turn out to be others than hashed: an upload that ends in an error stores nothing."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
        yield chunk
    if sha256.hexdigest() != digest:
        raise ValueError("the file changed while it was read; leave it alone and start again")
