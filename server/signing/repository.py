"""The signed metadata of a server's home, as the running service and a publisher use it.

Layout: ``keys/`` has the online keys (deltas, snapshot, timestamp), ``metadata/`` what devices fetch. Keys of root,
targets and releases are never here: `lamella trust` makes them in a folder of their own; publishing asks for one.

Source: TUF specification 1.0, sections 4 (documents) and 5 (client workflow).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self

from tuf.api.metadata import TargetFile

from privacy.attestation import seal
from server.errors import ConfigurationError, TargetConflictError
from server.files import locked, write_durably
from server.signing.documents import Chain, Documents
from server.signing.initialise import require_empty
from server.signing.keys import KeyFolder
from server.signing.roles import DOCUMENT_NAME, Lifetimes, bins_of
from server.signing.sealing import Sealer, commit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from tuf.api.metadata import Key, Metadata, Targets

    from server.config import Settings

    Files = dict[str, TargetFile]


@dataclass(frozen=True, kw_only=True)
class NewTarget:
    """A file to sign: length in bytes, sha256 in hex, and facts that devices read beside them."""

    path: str
    length: int
    sha256: str
    custom: Mapping[str, str | int | None]

    def as_file(self) -> TargetFile:
        """The same in TUF's words."""
        custom = {"custom": dict(self.custom)}
        return TargetFile(self.length, {"sha256": self.sha256}, self.path, unrecognized_fields=custom)


@dataclass(frozen=True, kw_only=True)
class OfflineExpiry:
    """When a document expires that only an offline key can renew."""

    document: str
    expires: datetime
    days_left: int


class SignedMetadata:
    """The signed metadata in a server's home; threads and processes take turns by a file lock."""

    def __init__(
        self,
        home: Path,
        *,
        lifetimes: Lifetimes,
        signed_versions: int = 16,
        release_keys: KeyFolder | None = None,
        now: Callable[[], datetime] | None = None,
        write: Callable[[Path, bytes], None] = write_durably,
    ) -> None:
        self._documents = Documents(home / "metadata", write)
        self._lock = home / ".signing.lock"
        self._lifetimes = lifetimes
        self._signed_versions = signed_versions
        self._release_keys = release_keys
        self._now = now or (lambda: datetime.now(UTC))
        self._online = Sealer(KeyFolder(home / "keys"), lifetimes, self._now)

    @classmethod
    def open(
        cls,
        settings: Settings,
        *,
        release_keys: KeyFolder | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> Self:
        """Open the metadata in the server's home, and renew what the online keys can renew.

        Args:
            settings: Where the home is, and how long documents hold.
            release_keys: The folder with the releases key, for who publishes; the service runs without.
            now: The clock.

        Raises:
            ConfigurationError: `lamella trust init` has not made keys here yet, or a key is readable by others.
            SigningError: Keys or metadata are damaged, or one is there without the other.
            StorageError: The disk refused.
        """
        require_initialised(settings.home)
        lifetimes = Lifetimes.of(settings)
        metadata = cls(
            settings.home,
            lifetimes=lifetimes,
            signed_versions=settings.signed_versions,
            release_keys=release_keys,
            now=now,
        )
        metadata.refresh()
        return metadata

    def root_bytes(self) -> bytes:
        """The newest signed root: what a device is given out of band to start its trust from."""
        return self._documents.read(f"{self._documents.root_version()}.root.json")

    def document(self, name: str) -> Path | None:
        """The file of a metadata document, or None when there is no such document.

        Args:
            name: As devices ask for it; anything but names of documents is None.
        """
        if not DOCUMENT_NAME.fullmatch(name):
            return None
        path = self._documents.folder / name
        return path if path.is_file() else None

    def expires_at(self) -> datetime:
        """When devices stop to believe this metadata, unless it is renewed before.

        Bins are left out: they hold longer than the timestamp, and what renews it renews them.
        """
        chain = Chain(self._documents)
        online = (chain.snapshot.signed.expires, chain.timestamp.signed.expires)
        return min(*(entry.expires for entry in self.offline_expiry()), *online)

    def offline_expiry(self) -> tuple[OfflineExpiry, ...]:
        """When what only offline keys can renew expires."""
        chain, now = Chain(self._documents), self._now()
        dates = {
            "root": chain.root.signed.expires,
            "targets": chain.targets.signed.expires,
            "packages": chain.packages.signed.expires,
            "releases": chain.releases.signed.expires,
        }
        return tuple(
            OfflineExpiry(document=document, expires=expires, days_left=(expires - now) // timedelta(days=1))
            for document, expires in dates.items()
        )

    def signed_versions(self, model: str) -> frozenset[int]:
        """The versions of a model whose manifests are signed: the newest few, as older ones are retired."""
        folder = f"manifests/{model}/"
        paths = Chain(self._documents).releases.signed.targets
        return frozenset(_version_in(path) for path in paths if path.startswith(folder))

    def signed_files(self) -> dict[str, tuple[int, str]]:
        """Length in bytes and sha256 of every file that is signed now, by its path."""
        chain = Chain(self._documents)
        signed = dict(chain.releases.signed.targets)
        for name in bins_of(chain.packages.signed).get_roles():
            signed |= chain.bin(name).signed.targets
        return {path: (file.length, file.hashes["sha256"]) for path, file in signed.items()}

    def drop_packages(self, paths: Iterable[str]) -> None:
        """Sign packages no longer, with the online keys; paths that are not signed are left out.

        Raises:
            SigningError: The metadata is damaged; nothing was changed.
            StorageError: The disk refused; devices see the metadata of before.
        """
        with locked(self._lock):
            chain = Chain(self._documents)
            bins = bins_of(chain.packages.signed)
            changed: dict[str, Metadata[Targets]] = {}
            for path in paths:
                name = bins.get_role_for_target(path)
                metadata = changed.get(name) or chain.bin(name)
                if metadata.signed.targets.pop(path, None) is not None:
                    changed[name] = metadata
            if changed:
                self._sign(chain, changed)
                commit(self._documents, chain, self._online, changed=changed)

    def warnings(self, within_days: int) -> tuple[str, ...]:
        """What an operator has to know: which metadata of offline keys expires within so many days, and what to do."""
        return tuple(
            f"The {entry.document} metadata {'expires' if entry.days_left >= 0 else 'expired'} on "
            f"{entry.expires:%Y-%m-%d}; devices then refuse every update. Renew it with the offline keys: "
            f"lamella trust renew {entry.document}"
            for entry in self.offline_expiry()
            if entry.days_left < within_days
        )

    def add_release(
        self,
        *,
        manifest: NewTarget,
        packages: Iterable[NewTarget],
        statement: NewTarget | None = None,
        offered: Collection[int] = (),
    ) -> None:
        """Sign a version's manifest with the releases key and its packages with the deltas key, as one change.

        What is signed already with the same contents is left alone. Versions of the same model older than the newest
        few (``signed_versions``) are retired: their manifests leave ``releases``, and their packages leave a bin when
        it is next signed.

        Args:
            manifest: What makes the version.
            packages: What takes devices to it.
            statement: Its privacy statement, signed as the manifest is; None for a version from before there were any.
            offered: Versions that channels and rollouts still offer; they stay signed, however old they are.

        Raises:
            TargetConflictError: A path is signed with other contents; nothing was changed.
            ConfigurationError, SigningError: A key or the metadata does not fit; nothing was changed.
            StorageError: The disk refused; devices see the metadata of before.
        """
        with locked(self._lock):
            chain = Chain(self._documents)
            changed: dict[str, Metadata[Targets]] = {}
            releases = chain.releases
            if _add(releases.signed.targets, [manifest, *([statement] if statement else [])]):
                _retire(releases.signed.targets, manifest.path, keep=self._signed_versions, offered=offered)
                changed["releases"] = releases
            bins = bins_of(chain.packages.signed)
            by_bin: dict[str, list[NewTarget]] = {}
            for package in packages:
                by_bin.setdefault(bins.get_role_for_target(package.path), []).append(package)
            for name, new in sorted(by_bin.items()):
                metadata = chain.bin(name)
                if _add(metadata.signed.targets, new):
                    _drop_retired(metadata.signed.targets, releases.signed.targets)
                    changed[name] = metadata
            if changed:
                self._sign(chain, changed)
                commit(self._documents, chain, self._online, changed=changed)

    def seal_statement(self, payload: bytes) -> tuple[bytes, Key]:
        """Put a statement into an envelope signed with the releases key; returns it, and the key's public half.

        The releases key, because a statement is a part of a release: who can make one can make the other.

        Raises:
            ConfigurationError, SigningError: As for `unlock_releases`.
            StatementError: The statement is larger than what devices read.
        """
        chain = Chain(self._documents)
        sealer = self._releases_sealer()
        sealer.seal("releases", chain.releases, [chain.targets.signed])  # says what to do where the key is not there
        signer = sealer.signers("releases", [chain.targets.signed])[0]
        return seal(payload, [signer]), signer.public_key

    def releases_keys(self) -> tuple[Key, ...]:
        """The public keys that may make releases now.

        Raises:
            SigningError: The metadata is damaged.
        """
        targets = Chain(self._documents).targets.signed
        delegations = targets.delegations
        keyids = targets.get_delegated_role("releases").keyids
        return tuple(delegations.keys[keyid] for keyid in keyids) if delegations else ()

    def unlock_releases(self) -> None:
        """Try the releases key, before hours of work are spent on what it then could not sign.

        Raises:
            ConfigurationError: It does not open, or this process was given no folder for it.
            SigningError: It is not in the folder.
        """
        chain = Chain(self._documents)
        self._releases_sealer().seal("releases", chain.releases, [chain.targets.signed])

    def refresh(self) -> bool:
        """Sign anew what online keys can sign and what has used up half of its lifetime; returns whether anything was.

        Raises:
            SigningError: The metadata is damaged.
            StorageError: The disk refused.
        """
        with locked(self._lock):
            chain, sealer = Chain(self._documents), self._online
            bins = {name: chain.bin(name) for name in bins_of(chain.packages.signed).get_roles()}
            due = {name: metadata for name, metadata in bins.items() if sealer.is_due(name, metadata)}
            for metadata in due.values():
                _drop_retired(metadata.signed.targets, chain.releases.signed.targets)
            if not (due or sealer.is_due("snapshot", chain.snapshot) or sealer.is_due("timestamp", chain.timestamp)):
                return False
            self._sign(chain, due)
            commit(self._documents, chain, sealer, changed=due)
            return True

    def _sign(self, chain: Chain, changed: Mapping[str, Metadata[Targets]]) -> None:
        """Number and sign changed documents: ``releases`` with the releases key, bins with the online key."""
        for document, metadata in changed.items():
            metadata.signed.version += 1
            if document == "releases":
                self._releases_sealer().seal(document, metadata, [chain.targets.signed])
            else:
                self._online.seal(document, metadata, [chain.packages.signed])

    def _releases_sealer(self) -> Sealer:
        if self._release_keys is None:
            raise ConfigurationError("This process was given no releases key. Release with: lamella release")
        return Sealer(self._release_keys, self._lifetimes, self._now)


def require_initialised(home: Path) -> None:
    """Refuse a home without keys and metadata of today's layout.

    Raises:
        ConfigurationError: Says what to do instead.
    """
    if (home / "keys" / "root.pem").exists():
        raise ConfigurationError(
            f"{home} holds the root key beside the others (keys/root.pem), as early versions did: who copies that "
            "folder can ship a model to every device. Start a new home (LAMELLA_HOME), run `lamella trust init`, and "
            "enrol the devices again."
        )
    if not (home / "metadata" / "timestamp.json").exists():
        require_empty(home)
        raise ConfigurationError(
            f"{home} has no keys and no signed metadata yet. Run once: lamella trust init (it asks for a passphrase "
            "and makes the offline keys in a folder of their own)."
        )


def _add(signed: Files, new: Iterable[NewTarget]) -> bool:
    """Add files to those signed; returns whether any was new."""
    wanted = {target.path: target.as_file() for target in new}
    for path, file in wanted.items():
        known = signed.get(path)
        if known is not None and known != file:
            raise TargetConflictError(
                f"{path} is signed as sha256 {known.hashes.get('sha256')} ({known.length} bytes), which never changes; "
                f"got {file.hashes['sha256']} ({file.length} bytes)."
            )
    is_new = not wanted.keys() <= signed.keys()
    signed.update(wanted)
    return is_new


def _retire(manifests: Files, added: str, *, keep: int, offered: Collection[int]) -> None:
    """Drop all but the newest ``keep`` versions, and those still ``offered``, of the model of ``added``."""
    folder = added.rpartition("/")[0]
    mine = [path for path in manifests if path.rpartition("/")[0] == folder]
    kept = {*sorted({_version_in(path) for path in mine})[-keep:], *offered}
    for path in mine:
        if _version_in(path) not in kept:
            del manifests[path]


def _drop_retired(packages: Files, manifests: Files) -> None:
    for path in list(packages):
        _, model, version, _ = path.split("/")
        if f"manifests/{model}/{version}.json" not in manifests:
            del packages[path]


def _version_in(manifest_path: str) -> int:
    return int(manifest_path.rpartition("/")[2].partition(".")[0])
