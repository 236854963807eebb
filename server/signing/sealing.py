"""Signing documents, and writing them in an order that a crash cannot hurt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import SigningError
from server.signing.documents import Document, is_signed, reference, to_bytes
from server.signing.keys import short
from server.signing.roles import OFFLINE, file_name, key_role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root, Targets

    from server.signing.documents import Chain, Documents
    from server.signing.keys import KeyFolder
    from server.signing.roles import Lifetimes


class Sealer:
    """Signs documents with the keys of one folder; each key is opened once."""

    def __init__(self, keys: KeyFolder, lifetimes: Lifetimes, now: Callable[[], datetime]) -> None:
        self._keys = keys
        self._lifetimes = lifetimes
        self._now = now
        self._signers: dict[tuple[str, ...], list[CryptoSigner]] = {}

    def seal(self, document: str, metadata: Metadata[Document], delegators: Sequence[Root | Targets]) -> None:
        """Give a document a new expiry and sign it with every key here that any of the delegators names for it.

        Raises:
            SigningError: The keys here are not enough for the last of the delegators.
            ConfigurationError: A key cannot be opened.
        """
        metadata.signed.expires = self.expiry(document)
        metadata.signatures.clear()
        for signer in self.signers(document, delegators):
            metadata.sign(signer, append=True)
        if not is_signed(metadata, document, delegators[-1]):
            role = delegators[-1].get_delegated_role(document)
            where = "name the folder that has them (LAMELLA_OFFLINE_KEYS), " if key_role(document) in OFFLINE else ""
            raise SigningError(
                f"{self._keys.folder} has not the keys to sign {document}: {role.threshold} of "
                f"{', '.join(map(short, role.keyids))} ({key_role(document)}). Restore them from a backup, {where}or "
                f"replace them: lamella trust rotate {key_role(document)}"
            )

    def expiry(self, document: str) -> datetime:
        """When a document that is signed now expires."""
        return (self._now() + self._lifetimes.for_document(document)).replace(microsecond=0)

    def is_due(self, document: str, metadata: Metadata[Document]) -> bool:
        """Whether a document has used up half of its lifetime."""
        return metadata.signed.expires - self._now() < self._lifetimes.for_document(document) / 2

    def signers(self, document: str, delegators: Sequence[Root | Targets]) -> list[CryptoSigner]:
        """Signers for the keys here that any of the delegators names for a document."""
        wanted = {keyid for delegator in delegators for keyid in delegator.get_delegated_role(document).keyids}
        keyids = tuple(sorted(wanted))
        if keyids not in self._signers:
            self._signers[keyids] = self._keys.signers(keyids)
        return self._signers[keyids]


def commit(
    documents: Documents,
    chain: Chain,
    sealer: Sealer,
    *,
    changed: Mapping[str, Metadata[Targets]],
    root: Metadata[Root] | None = None,
) -> None:
    """Let a new timestamp and, unless nothing changed, a new snapshot name changed documents, which are signed already.

    With a new root, snapshot and timestamp are signed for the old one and the new one, so that whichever of the two a
    device sees, it finds what it can verify; the new root is written last.

    Raises:
        SigningError: The online keys do not fit, or a document is too large; nothing was written.
        StorageError: The disk refused; devices see the metadata of before.
    """
    roots = [chain.root.signed, *([root.signed] if root else [])]
    files = {}
    snapshot, timestamp = chain.snapshot, chain.timestamp
    if changed or root or sealer.is_due("snapshot", snapshot):
        for document, metadata in changed.items():
            version, content = metadata.signed.version, to_bytes(document, metadata)
            files[file_name(document, version)] = content
            snapshot.signed.meta[f"{document}.json"] = reference(document, version, content)
        snapshot.signed.version += 1
        sealer.seal("snapshot", snapshot, roots)
        version, content = snapshot.signed.version, to_bytes("snapshot", snapshot)
        files[file_name("snapshot", version)] = content
        timestamp.signed.snapshot_meta = reference("snapshot", version, content)
    timestamp.signed.version += 1
    sealer.seal("timestamp", timestamp, roots)
    files["timestamp.json"] = to_bytes("timestamp", timestamp)
    if root is not None:
        files[file_name("root", root.signed.version)] = to_bytes("root", root)
    documents.write(files)
