"""Keys and signed metadata of an update service, in memory: the server's roles, and whatever a thief of keys can sign.

Written without the server's code, so that a device is tested against the layout and not against one implementation.
"""

import copy
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

Document = TypeVar("Document", Root, Targets, Snapshot, Timestamp)
BIT_LENGTH = 1
THRESHOLD, ROOT_KEYS = 2, 3


class FakeTrust:
    """Roles, their signers, their documents, and ``metadata``: the bytes that devices are given, by file name."""

    def __init__(self) -> None:
        self.metadata: dict[str, bytes] = {}
        self.signers = {role: [_new_signer()] for role in ("targets", "releases", "deltas", "snapshot", "timestamp")}
        self.signers["root"] = [_new_signer() for _ in range(ROOT_KEYS)]
        self.root = Root(version=1, consistent_snapshot=True)
        for role in ("root", "targets", "snapshot", "timestamp"):
            for signer in self.signers[role]:
                self.root.add_key(signer.public_key, role)
        self.root.roles["root"].threshold = THRESHOLD
        self.targets = Targets(version=1, delegations=self._delegations())
        deltas = self.signers["deltas"][0].public_key
        bins = SuccinctRoles([deltas.keyid], 1, BIT_LENGTH, "deltas")
        self.packages = Targets(version=1, delegations=Delegations({deltas.keyid: deltas}, succinct_roles=bins))
        self.releases = Targets(version=1)
        self.bins = {name: Targets(version=1) for name in bins.get_roles()}
        self.snapshot = Snapshot(version=1)
        self.timestamp = Timestamp(version=1)
        self.sign_root()
        self.sign()

    # --- what an operator does

    def add_target(self, path: str, raw: bytes, custom: dict[str, Any]) -> None:
        """Name a file in the document whose role is asked for its path; `sign` then signs it."""
        self.list_for(path).targets[path] = target_file(path, raw, custom)

    def list_for(self, path: str) -> Targets:
        """The document whose role is asked for a path."""
        if path.startswith("manifests/"):
            return self.releases
        roles = self.packages.delegations
        assert roles is not None
        assert roles.succinct_roles is not None
        return self.bins[roles.succinct_roles.get_role_for_target(path)]

    def sign(self, *, expires: datetime | None = None, without: Sequence[str] = ()) -> None:
        """Sign everything but the root anew, one version on; `without` names documents that stay as they are."""
        lists = {"targets": self.targets, "packages": self.packages, "releases": self.releases, **self.bins}
        for document, signed in lists.items():
            if document not in without:
                signed.version += 1
                signed.expires = expires or in_a_day()
                content = self.store(document, signed)
                self.snapshot.meta[f"{document}.json"] = reference(document, signed.version, content)
        self.sign_snapshot(expires=expires)

    def sign_snapshot(self, *, expires: datetime | None = None) -> None:
        """Sign snapshot and timestamp anew."""
        self.snapshot.version += 1
        self.snapshot.expires = expires or in_a_day()
        content = self.store("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = reference("snapshot", self.snapshot.version, content)
        self.sign_timestamp(expires=expires)

    def sign_timestamp(self, *, expires: datetime | None = None) -> None:
        """Sign the timestamp anew."""
        self.timestamp.version += 1
        self.timestamp.expires = expires or in_a_day()
        self.store("timestamp", self.timestamp)

    def sign_root(self, *, expires: datetime | None = None) -> None:
        self.root.expires = expires or in_a_day()
        self.store("root", self.root)

    def rotate(self, *roles: str, expires: datetime | None = None) -> None:
        """Replace the keys of some roles, in a new root and in what else names them; `sign` then uses them."""
        old_root = list(self.signers["root"])
        for role in roles:
            new = [_new_signer() for _ in self.signers[role]]
            delegators: list[tuple[Root | Targets, str]] = {
                "deltas": [(self.packages, "deltas-0")],
                "releases": [(self.targets, "releases")],
                "targets": [(self.root, "targets"), (self.targets, "packages")],
            }.get(role, [(self.root, role)])
            for delegator, name in delegators:
                for signer in new:
                    delegator.add_key(signer.public_key, name)
                for signer in self.signers[role]:
                    delegator.revoke_key(signer.public_key.keyid, name)
            self.signers[role] = new
        self.root.version += 1
        self.root.expires = expires or in_a_day()
        signers = {signer.public_key.keyid: signer for signer in (*old_root, *self.signers["root"])}
        self.metadata[f"{self.root.version}.root.json"] = signed_bytes(self.root, list(signers.values()))

    # --- what a thief does

    def stolen(self, *roles: str) -> "FakeTrust":
        """A copy in which only the keys of these roles are the real ones: what a thief of them can sign.

        Its `metadata` is its own, and begins as a copy of what the service gives out.
        """
        thief = copy.copy(self)
        thief.signers = {
            role: signers if role in roles else [_new_signer() for _ in signers]
            for role, signers in self.signers.items()
        }
        for name in ("metadata", "root", "targets", "packages", "releases", "bins", "snapshot", "timestamp"):
            setattr(thief, name, copy.deepcopy(getattr(self, name)))
        return thief

    def store(self, document: str, signed: Root | Targets | Snapshot | Timestamp) -> bytes:
        """Sign a document with the keys of its role, and give it out."""
        role = "deltas" if document.startswith("deltas-") else "targets" if document == "packages" else document
        name = "timestamp.json" if document == "timestamp" else f"{signed.version}.{document}.json"
        self.metadata[name] = signed_bytes(signed, self.signers[role])
        return self.metadata[name]

    def _delegations(self) -> Delegations:
        keys = {role: self.signers[role][0].public_key for role in ("releases", "targets")}
        roles = {
            "releases": DelegatedRole("releases", [keys["releases"].keyid], 1, True, ["manifests/*/*.json"]),
            "packages": DelegatedRole("packages", [keys["targets"].keyid], 1, True, ["packages/*/*/*.lmpkg"]),
        }
        return Delegations({key.keyid: key for key in keys.values()}, roles)


def reference(document: str, version: int, content: bytes) -> MetaFile:
    """How a snapshot names a document, or a timestamp the snapshot: bins by version, the rest by hash as well."""
    if document.startswith("deltas-"):
        return MetaFile(version)
    return MetaFile(version, len(content), {"sha256": hashlib.sha256(content).hexdigest()})


def target_file(path: str, raw: bytes, custom: dict[str, Any]) -> TargetFile:
    """A file as metadata names it."""
    hashes = {"sha256": hashlib.sha256(raw).hexdigest()}
    return TargetFile(len(raw), hashes, path, unrecognized_fields={"custom": custom})


def signed_bytes(signed: Root | Targets | Snapshot | Timestamp, signers: Sequence[CryptoSigner]) -> bytes:
    """A document with signatures."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def in_a_day() -> datetime:
    return (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)


def an_hour_ago() -> datetime:
    return (datetime.now(UTC) - timedelta(hours=1)).replace(microsecond=0)


def _new_signer() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()
