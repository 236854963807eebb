"""Signed metadata (TUF, https://theupdateframework.github.io/specification/): what the service's keys vouch for.

`tuf.ngclient` verifies signatures, expiry, rollback, freeze and mix-and-match of the metadata, starting at the root
that came with the enrolment file. Package bytes do not go through it: our own fetcher resumes downloads and this
module only hands out the signed length and hash.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from client_sdk.disk import Disk, disk_errors
from client_sdk.errors import EnrolmentError, MetadataError, ServiceRefusedError
from client_sdk.release_privacy import parse_statement
from client_sdk.responses import printable
from client_sdk.service import METADATA, TARGETS
from client_sdk.state import MetadataFloor
from client_sdk.transport import Transport
from client_sdk.trust import SignedFile
from delta_updates import DeltaError, VersionManifest
from privacy.attestation import MAX_ENVELOPE_BYTES, PrivacyStatement, statement_path

_MAX_MANIFEST_BYTES = 1 << 20
_CONFIG = UpdaterConfig(prefix_targets_with_hash=False)


class SignedCatalogue:
    """The verified metadata of one server, cached in `folder` (the device's `trust/`)."""

    def __init__(self, folder: Path, transport: Transport, disk: Disk) -> None:
        self._folder = folder
        self._transport = transport
        self._disk = disk
        self._updater: Updater | None = None

    def refresh(self, floor: MetadataFloor) -> MetadataFloor:
        """Fetch and verify the newest metadata; returns the new floor to remember.

        Raises:
            ServiceUnavailableError, EnrolmentError: see `Transport.call`.
            MetadataError: it does not verify, is expired, or is older than `floor`.
            DeviceDiskError: the cache cannot be written.
        """
        with disk_errors(self._folder, "storing signed metadata"):
            try:
                updater = Updater(
                    str(self._folder),
                    self._transport.server_url + METADATA,
                    fetcher=_MetadataFetcher(self._transport),
                    config=_CONFIG,
                    bootstrap=self._pinned_root(),
                )
                updater.refresh()
            except (RepositoryError, DownloadHTTPError) as error:
                raise MetadataError(_sentence(error)) from error
            seen = self._seen()
            # python-tuf's cache protects against rollback only while it exists; the floor also holds when it was lost.
            if not floor.allows(seen):
                raise MetadataError(
                    f"The signed metadata is older (root {seen.root_version}, timestamp {seen.timestamp_version}) than "
                    f"what this device has seen (root {floor.root_version}, timestamp {floor.timestamp_version}). "
                    "Someone may be replaying old metadata; nothing was installed."
                )
            self._make_durable()
        self._updater = updater
        return seen

    def signed_file(self, path: str) -> SignedFile:
        """The signed length, sha256 and custom facts of a target path. Needs `refresh` first.

        Raises:
            MetadataError: the path is not signed, or without a sha256.
        """
        found = self._find(path)
        if found is None:
            raise MetadataError(f"{path!r} is not among the files the service has signed (with sha256).")
        return found

    def _find(self, path: str) -> SignedFile | None:
        if self._updater is None:
            raise ValueError("refresh the metadata before asking for a signed file")
        try:
            target = self._updater.get_targetinfo(path)
        except (RepositoryError, DownloadHTTPError) as error:
            raise MetadataError(_sentence(error)) from error
        if target is None or "sha256" not in target.hashes:
            return None
        return SignedFile(path, target.length, target.hashes["sha256"], dict(target.custom or {}))

    def manifest(self, path: str) -> VersionManifest:
        """Fetch a signed manifest and parse it only after its length and hash were checked.

        Raises:
            MetadataError: the bytes are not what was signed, or not a manifest.
            ServiceUnavailableError, ServiceRefusedError, EnrolmentError: see `Transport.call`.
        """
        raw = self._fetch(self.signed_file(path), max_bytes=_MAX_MANIFEST_BYTES)
        try:
            return VersionManifest.from_bytes(raw)
        except DeltaError as error:
            raise MetadataError(f"{path!r} is signed but is not a manifest this device understands: {error}") from error

    def statement(self, manifest: VersionManifest) -> PrivacyStatement | None:
        """Fetch the signed privacy statement of a version; None where none is signed.

        Raises:
            MetadataError: the bytes are not what was signed, or not a statement.
            ServiceUnavailableError, ServiceRefusedError, EnrolmentError: see `Transport.call`.
        """
        signed = self._find(statement_path(manifest.model, manifest.version))
        if signed is None:
            return None
        return parse_statement(self._fetch(signed, max_bytes=MAX_ENVELOPE_BYTES), signed)

    def _fetch(self, signed: SignedFile, *, max_bytes: int) -> bytes:
        """The bytes of a small signed file, once their length and hash were checked."""
        if signed.length > max_bytes:
            raise MetadataError(f"{signed.path!r} is signed as {signed.length} bytes; at most {max_bytes} are read.")
        raw = self._transport.call("GET", target_url_path(signed.path), max_bytes=signed.length).body
        if len(raw) != signed.length or hashlib.sha256(raw).hexdigest() != signed.sha256:
            raise MetadataError(f"The bytes of {signed.path!r} are not what was signed (length or sha256 differs).")
        return raw

    def _pinned_root(self) -> bytes:
        path = pinned_root_path(self._folder)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise EnrolmentError(
                f"{path} is missing: without its pinned root this device trusts no one. Enrol it again."
            ) from None

    def _seen(self) -> MetadataFloor:
        root = Metadata[Root].from_file(str(self._folder / "root.json")).signed
        timestamp = Metadata[Timestamp].from_file(str(self._folder / "timestamp.json")).signed
        return MetadataFloor(root_version=root.version, timestamp_version=timestamp.version)

    def _make_durable(self) -> None:
        """Force what python-tuf cached to the disk: it renames without fsync."""
        history = self._folder / "root_history"
        for path in (*self._folder.glob("*.json"), *history.glob("*.json")):
            self._disk.sync_file(path.resolve())
        self._disk.sync_folder(history)
        self._disk.sync_folder(self._folder)


class _MetadataFetcher(FetcherInterface):
    """python-tuf's door to our transport: the caller's length bound is applied while reading."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def download_bytes(self, url: str, max_length: int) -> bytes:
        path = url.removeprefix(self._transport.server_url)
        try:
            return self._transport.call("GET", path, max_bytes=max_length).body
        except ServiceRefusedError as error:
            # python-tuf asks for the next root until the answer is "no such file".
            raise DownloadHTTPError(str(error), error.status) from error

    def _fetch(self, url: str) -> Iterator[bytes]:
        return iter((self.download_bytes(url, _CONFIG.targets_max_length),))


def target_url_path(path: str) -> str:
    """The URL path of a target; the path itself was checked by `trust`."""
    return TARGETS + quote(path)


def pinned_root_path(folder: Path) -> Path:
    """Where the enrolment's root is kept: beside python-tuf's cache, never written by it."""
    return folder / "pinned_root"


def checked_root(root: dict[str, object]) -> bytes:
    """The bytes of an enrolment file's root, after checking that it is one and signs itself.

    Raises:
        EnrolmentError: it is not valid TUF root metadata.
    """
    raw = json.dumps(root, sort_keys=True).encode()
    try:
        parsed = Metadata[Root].from_bytes(raw)
        parsed.signed.verify_delegate(Root.type, parsed.signed_bytes, parsed.signatures)
        _require_distinct_keys(parsed.signed)
    except (RepositoryError, ValueError) as error:
        raise EnrolmentError(
            f"The enrolment file's root is not valid root metadata ({printable(str(error), max_chars=120)}). Ask the "
            "operator for a new enrolment file."
        ) from error
    return raw


def _require_distinct_keys(root: Root) -> None:
    """Refuse one key under two ids: its holder alone would be several of those who must sign."""
    for name, role in root.roles.items():
        values = {json.dumps(root.keys[keyid].keyval, sort_keys=True) for keyid in role.keyids}
        if len(values) < len(role.keyids):
            raise ValueError(f"two keys of {name} are the same key")


def _sentence(error: Exception) -> str:
    text = printable(str(error))
    if isinstance(error, ExpiredMetadataError):
        return (
            f"The signed metadata has expired ({text}). Check this device's clock; else the operator has to renew it."
        )
    return f"The signed metadata does not verify ({text}). Nothing was installed; tell the operator."
