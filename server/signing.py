"""Signed metadata (The Update Framework): four roles with a key each, consistent snapshots, crash-safe writes.

Layout of the server's home: ``keys/<role>.pem`` (ed25519, mode 0600) and ``metadata/`` with ``N.root.json``,
``N.targets.json``, ``N.snapshot.json`` and ``timestamp.json``. The timestamp is written last: until it names them,
newer files beside it do not exist for any device, and a writer that comes after a crash replaces them.

Source: TUF specification 1.0, sections 4 (documents) and 5 (client workflow).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from server.errors import ConfigurationError, SigningError, TargetConflictError
from server.files import locked, make_folder, secret_file, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from server.config import Settings

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
_NAME = re.compile(r"timestamp\.json|[1-9][0-9]{0,8}\.(root|targets|snapshot)\.json")
_ROOT_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json")
_Signed = TypeVar("_Signed", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, kw_only=True)
class NewTarget:
    """A file to sign: length in bytes, sha256 in hex, and facts that devices read beside them."""

    path: str
    length: int
    sha256: str
    custom: Mapping[str, str | int | None]


class SignedMetadata:
    """The repository of signed metadata in a server's home; threads and processes take turns by a file lock."""

    def __init__(
        self,
        home: Path,
        *,
        lifetimes: Mapping[str, timedelta],
        now: Callable[[], datetime] | None = None,
        write: Callable[[Path, bytes], None] = write_durably,
    ) -> None:
        self._folder = home / "metadata"
        self._keys = home / "keys"
        self._lock = home / ".signing.lock"
        self._lifetimes = lifetimes
        self._now = now or (lambda: datetime.now(UTC))
        self._write = write

    @classmethod
    def open(cls, settings: Settings, *, now: Callable[[], datetime] | None = None) -> Self:
        """Open the metadata in the server's home, making keys and first metadata when there are none.

        Raises:
            ConfigurationError: A key is readable by others, or is no ed25519 key.
            SigningError: Keys or metadata are damaged, or one is there without the other.
            StorageError: The disk refused.
        """
        metadata = cls(
            settings.home,
            lifetimes={
                "root": timedelta(days=settings.root_expiry_days),
                "targets": timedelta(days=settings.targets_expiry_days),
                "snapshot": timedelta(days=settings.snapshot_expiry_days),
                "timestamp": timedelta(hours=settings.timestamp_expiry_hours),
            },
            now=now,
        )
        make_folder(settings.home, mode=0o700)
        metadata.start()
        return metadata

    def start(self) -> None:
        """Make what is missing of keys and first metadata, and renew what is about to expire."""
        make_folder(self._keys, mode=0o700)
        make_folder(self._folder)
        with locked(self._lock):
            if not (self._folder / "timestamp.json").exists():
                self._make_first()
        self.refresh_timestamp()

    def root_bytes(self) -> bytes:
        """The newest signed root: what a device is given out of band to start its trust from."""
        return self._read(f"{self._root_version()}.root.json")

    def document(self, name: str) -> Path | None:
        """The file of a metadata document, or None when there is no such document.

        Args:
            name: As devices ask for it; anything but the four kinds of names is None.
        """
        if not _NAME.fullmatch(name):
            return None
        path = self._folder / name
        return path if path.is_file() else None

    def expires_at(self) -> datetime:
        """When devices stop to believe this metadata, unless it is renewed before."""
        timestamp, snapshot, targets = self._timestamp(), self._snapshot(), self._targets()
        return min(self._root().signed.expires, *(item.signed.expires for item in (targets, snapshot, timestamp)))

    def add_targets(self, targets: Iterable[NewTarget]) -> None:
        """Sign more files; what is signed already with the same contents is left alone.

        Raises:
            TargetConflictError: A path is signed with other contents; nothing was changed.
            SigningError: The metadata is damaged.
            StorageError: The disk refused; devices see the metadata of before.
        """
        with locked(self._lock):
            signed = self._targets()
            wanted = {target.path: _target_file(target) for target in targets}
            for path, file in wanted.items():
                known = signed.signed.targets.get(path)
                if known is not None and known != file:
                    raise TargetConflictError(
                        f"{path} is signed as sha256 {known.hashes.get('sha256')} ({known.length} bytes), which never "
                        f"changes; got {file.hashes['sha256']} ({file.length} bytes)."
                    )
            if wanted.keys() <= signed.signed.targets.keys():
                return
            signed.signed.targets.update(wanted)
            self._publish(self._snapshot(), targets=signed)

    def refresh_timestamp(self) -> bool:
        """Sign anew what has used up half of its lifetime; returns whether anything was.

        Raises:
            SigningError: The metadata is damaged.
            StorageError: The disk refused.
        """
        with locked(self._lock):
            root, targets, snapshot, timestamp = self._root(), self._targets(), self._snapshot(), self._timestamp()
            is_root_due = self._is_due(root)
            if is_root_due:
                root.signed.version += 1
                self._save(f"{root.signed.version}.root.json", root)
            if self._is_due(targets):
                self._publish(snapshot, targets=targets)
            elif self._is_due(snapshot):
                self._publish(snapshot)
            elif self._is_due(timestamp):
                self._save_timestamp(timestamp)
            else:
                return is_root_due
            return True

    def _make_first(self) -> None:
        """Make keys and the first of each document; repeatable, as no device sees any of it before the timestamp."""
        first = {f"1.{role}.json" for role in ROLES}
        if later := sorted(path.name for path in self._folder.glob("*.json") if path.name not in first):
            raise SigningError(
                f"{self._folder} has {later[-1]} but no timestamp.json. Restore the folder from a backup."
            )
        root = Root(consistent_snapshot=True)
        for role in ROLES:
            secret_file(self._keys / f"{role}.pem", _new_key)
            root.add_key(self._signer(role).public_key, role)
        self._save("1.root.json", Metadata(root))
        self._save("1.targets.json", Metadata(Targets()))
        self._save("1.snapshot.json", Metadata(Snapshot()))
        self._save_timestamp(Metadata(Timestamp()), version=1)

    def _publish(self, snapshot: Metadata[Snapshot], *, targets: Metadata[Targets] | None = None) -> None:
        """Write a new snapshot, with new targets when given, and let the timestamp name it."""
        if targets is not None:
            targets.signed.version += 1
            self._save(f"{targets.signed.version}.targets.json", targets)
            snapshot.signed.meta["targets.json"] = MetaFile(version=targets.signed.version)
        snapshot.signed.version += 1
        self._save(f"{snapshot.signed.version}.snapshot.json", snapshot)
        timestamp = self._timestamp()
        timestamp.signed.snapshot_meta = MetaFile(version=snapshot.signed.version)
        self._save_timestamp(timestamp)

    def _save_timestamp(self, timestamp: Metadata[Timestamp], *, version: int | None = None) -> None:
        timestamp.signed.version = version or timestamp.signed.version + 1
        self._save("timestamp.json", timestamp)

    def _save(self, name: str, metadata: Metadata[_Signed]) -> None:
        role = metadata.signed.type
        metadata.signed.expires = (self._now() + self._lifetimes[role]).replace(microsecond=0)
        metadata.sign(self._signer(role))
        self._write(self._folder / name, metadata.to_bytes())

    def _is_due(self, metadata: Metadata[_Signed]) -> bool:
        return metadata.signed.expires - self._now() < self._lifetimes[metadata.signed.type] / 2

    def _signer(self, role: str) -> CryptoSigner:
        path = self._keys / f"{role}.pem"
        try:
            key = load_pem_private_key(secret_file(path), password=None)
        except ValueError:
            raise ConfigurationError(f"{path} is not an unencrypted PEM key. Restore it from a backup.") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"{path} is not an ed25519 key. Restore it from a backup.")
        return CryptoSigner(key)

    def _root_version(self) -> int:
        versions = [int(match[1]) for path in self._folder.iterdir() if (match := _ROOT_NAME.fullmatch(path.name))]
        if not versions:
            raise SigningError(f"{self._folder} has no root metadata. Restore it from a backup.")
        return max(versions)

    def _root(self) -> Metadata[Root]:
        return self._load(f"{self._root_version()}.root.json", Root)

    def _timestamp(self) -> Metadata[Timestamp]:
        return self._load("timestamp.json", Timestamp)

    def _snapshot(self) -> Metadata[Snapshot]:
        return self._load(f"{self._timestamp().signed.snapshot_meta.version}.snapshot.json", Snapshot)

    def _targets(self) -> Metadata[Targets]:
        return self._load(f"{self._snapshot().signed.meta['targets.json'].version}.targets.json", Targets)

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise SigningError(
                f"Could not read {self._folder / name}: {error.strerror or error}. Restore the folder from a backup."
            ) from error

    def _load(self, name: str, kind: type[_Signed]) -> Metadata[_Signed]:
        """Parse one document and check that our own key signed it, so that a damaged file is never re-signed."""
        try:
            metadata: Metadata[Any] = Metadata.from_bytes(self._read(name))
            if not isinstance(metadata.signed, kind):
                raise SigningError(f"{self._folder / name} is {metadata.signed.type} metadata, not {kind.type}.")
            key = self._signer(kind.type).public_key
            key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
        except (DeserializationError, UnverifiedSignatureError, KeyError, ValueError) as error:
            raise SigningError(
                f"{self._folder / name} is damaged or not signed by this home's {kind.type} key. Restore metadata and "
                "keys from the same backup."
            ) from error
        return metadata


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _target_file(target: NewTarget) -> TargetFile:
    return TargetFile(
        length=target.length,
        hashes={"sha256": target.sha256},
        path=target.path,
        unrecognized_fields={"custom": dict(target.custom)},
    )
