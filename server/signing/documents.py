"""The folder of signed documents: what is read is verified against the role that delegates to it, first of all.

The timestamp is written last: until it names them, newer files beside it do not exist for any device, and a writer that
comes after a crash replaces them.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from server.errors import SigningError
from server.signing.roles import file_name, max_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_ROOT_NAME: Final = re.compile(r"([1-9][0-9]{0,8})\.root\.json")
_HASHED: Final = frozenset({"targets", "packages", "releases", "snapshot"})
Document = TypeVar("Document", Root, Targets, Snapshot, Timestamp)


class Documents:
    """Signed documents in ``folder``; ``write`` replaces a file durably."""

    def __init__(self, folder: Path, write: Callable[[Path, bytes], None]) -> None:
        self.folder = folder
        self._write = write

    def read(self, name: str) -> bytes:
        """The bytes of a document.

        Raises:
            SigningError: It is not there.
        """
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise SigningError(
                f"Could not read {self.folder / name}: {error.strerror or error}. Restore the folder from a backup."
            ) from error

    def write(self, files: dict[str, bytes]) -> None:
        """Write documents in the order given.

        Raises:
            StorageError: The disk refused.
        """
        for name, content in files.items():
            self._write(self.folder / name, content)

    def root_version(self) -> int:
        """The number of the newest root.

        Raises:
            SigningError: There is none.
        """
        names = (path.name for path in self.folder.glob("*.root.json"))
        versions = [int(match[1]) for name in names if (match := _ROOT_NAME.fullmatch(name))]
        if not versions:
            raise SigningError(f"{self.folder} has no root metadata. Restore it from a backup.")
        return max(versions)

    def parse(self, document: str, version: int, kind: type[Document]) -> Metadata[Document]:
        """A document as it lies there, not verified.

        Raises:
            SigningError: It is missing, damaged or of another kind.
        """
        name = file_name(document, version)
        return parse_document(self.read(name), kind, where=str(self.folder / name))


class Chain:
    """The newest documents of a folder, each verified against the one that delegates to it.

    Args:
        documents: The folder.
        also: A root that is about to follow the newest one; what it vouches for counts as well.

    Raises (on every access):
        SigningError: A document is missing, damaged, or not signed by the keys that should have.
    """

    def __init__(self, documents: Documents, *, also: Root | None = None) -> None:
        self._documents = documents
        self.root = documents.parse("root", documents.root_version(), Root)
        self._roots = [self.root.signed, *([also] if also else [])]
        self._require_signed(self.root, "root", [self.root.signed])

    @cached_property
    def timestamp(self) -> Metadata[Timestamp]:
        """The newest timestamp."""
        return self._load("timestamp", 0, Timestamp, self._roots)

    @cached_property
    def snapshot(self) -> Metadata[Snapshot]:
        """The snapshot that the timestamp names."""
        return self._load("snapshot", self.timestamp.signed.snapshot_meta.version, Snapshot, self._roots)

    @cached_property
    def targets(self) -> Metadata[Targets]:
        """The delegations to ``releases`` and ``packages``."""
        return self._load("targets", self.version_of("targets"), Targets, self._roots)

    @cached_property
    def packages(self) -> Metadata[Targets]:
        """The list of bins."""
        return self._load("packages", self.version_of("packages"), Targets, [self.targets.signed])

    @cached_property
    def releases(self) -> Metadata[Targets]:
        """The manifests."""
        return self._load("releases", self.version_of("releases"), Targets, [self.targets.signed])

    def bin(self, name: str) -> Metadata[Targets]:
        """One bin of packages."""
        return self._load(name, self.version_of(name), Targets, [self.packages.signed])

    def version_of(self, document: str) -> int:
        """The version of a document that the snapshot names."""
        entry = self.snapshot.signed.meta.get(f"{document}.json")
        if entry is None:
            raise SigningError(f"The newest snapshot does not name {document}. Restore metadata from a backup.")
        return entry.version

    def _load(
        self, document: str, version: int, kind: type[Document], delegators: Sequence[Root | Targets]
    ) -> Metadata[Document]:
        metadata = self._documents.parse(document, version, kind)
        self._require_signed(metadata, document, delegators)
        return metadata

    def _require_signed(
        self, metadata: Metadata[Document], document: str, delegators: Sequence[Root | Targets]
    ) -> None:
        # A damaged file must never be signed again.
        if not any(is_signed(metadata, document, delegator) for delegator in delegators):
            raise SigningError(
                f"{self._documents.folder / file_name(document, metadata.signed.version)} is damaged or not signed by "
                f"the keys of its role. Restore metadata and keys from the same backup; if a `lamella trust publish` "
                "was cut off, run it again."
            )


def is_signed(metadata: Metadata[Document], document: str, delegator: Root | Targets) -> bool:
    """Whether enough keys that the delegator names for this document have signed it."""
    try:
        delegator.verify_delegate(document, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError):
        return False
    return True


def parse_document(raw: bytes, kind: type[Document], *, where: str) -> Metadata[Document]:
    """Parse signed metadata of one kind.

    Raises:
        SigningError: The bytes are not that; ``where`` names them.
    """
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(raw)
    except (RepositoryError, ValueError) as error:
        raise SigningError(f"{where} is damaged. Restore it from a backup.") from error
    if not isinstance(metadata.signed, kind):
        raise SigningError(f"{where} is {metadata.signed.type} metadata, not {kind.type}.")
    return metadata


def reference(document: str, version: int, content: bytes) -> MetaFile:
    """How a snapshot names a document, or a timestamp the snapshot.

    With its hash, a document counts only if two keys agree: a stolen releases or targets key alone, in the hands of
    whoever stands between device and server, cannot replace the bytes under a version number. Bins go without: their
    packages prove nothing by themselves, and a hash for each would treble what every device fetches.
    """
    if document not in _HASHED:
        return MetaFile(version)
    return MetaFile(version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})


def to_bytes(document: str, metadata: Metadata[Document]) -> bytes:
    """The bytes of a signed document.

    Raises:
        SigningError: It is larger than what a device reads; nothing was written.
    """
    content = metadata.to_bytes()
    if len(content) > max_bytes(document):
        raise SigningError(
            f"{document} metadata would have {len(content)} bytes; devices read at most {max_bytes(document)}. Lower "
            "LAMELLA_SIGNED_VERSIONS, so that older versions are retired, or start another home for some of the models."
        )
    return content
