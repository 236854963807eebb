"""The first keys and the first metadata of a home, made once by a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from server.errors import ConfigurationError
from server.files import locked, make_folder, write_durably
from server.signing.documents import Document, Documents, reference, to_bytes
from server.signing.keys import KeyFolder
from server.signing.roles import ONLINE, Lifetimes, bins_of, file_name, new_packages, new_targets, require_bins
from server.signing.sealing import Sealer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tuf.api.metadata import Key

DEFAULT_BINS = 64


def initialise(
    home: Path,
    offline: KeyFolder,
    *,
    lifetimes: Lifetimes,
    root_keys: int = 3,
    root_threshold: int = 2,
    bins: int = DEFAULT_BINS,
    now: Callable[[], datetime] | None = None,
    write: Callable[[Path, bytes], None] = write_durably,
) -> None:
    """Make every key, and sign the first metadata: an empty list of releases.

    Args:
        home: The server's home; gets the online keys and the metadata.
        offline: An empty folder elsewhere; gets the keys of root, targets and releases.
        lifetimes: How long each document holds.
        root_keys: How many root keys there are.
        root_threshold: How many of them must sign a new root.
        bins: Over how many documents the packages are spread; see ``benchmarks``. A power of two, fixed for good.
        now: The clock.
        write: How a file of metadata is replaced.

    Raises:
        ConfigurationError: There are keys or metadata already, or a number does not fit; nothing was changed.
        StorageError: The disk refused.
    """
    if not 1 <= root_threshold <= root_keys <= 16:  # noqa: PLR2004 - more key holders than anyone can gather
        raise ConfigurationError(f"Of {root_keys} root keys, {root_threshold} cannot sign. Have 1 to 16 keys.")
    require_bins(bins)
    require_outside(offline.folder, home)
    if any(offline.folder.glob("*.pem")):
        raise ConfigurationError(
            f"{offline.folder} holds keys already, and keys are never overwritten. Choose another folder with --keys; "
            "if those are left from a `lamella trust init` that was cut off, remove them first."
        )
    make_folder(home, mode=0o700)
    with locked(home / ".signing.lock"):
        require_empty(home)
        folder = KeyFolder(home / "keys")
        for role in ONLINE:
            folder.remove_others(role, keep=())  # from an attempt that was cut off; no device knows them
        online = {role: folder.make(role) for role in ONLINE}
        roots = [offline.make("root") for _ in range(root_keys)]
        targets, releases = offline.make("targets"), offline.make("releases")
        clock = now or (lambda: datetime.now(UTC))
        files = _Signed(Sealer(offline, lifetimes, clock), Sealer(folder, lifetimes, clock))
        root = _root(roots, root_threshold, targets=targets, online=online)
        make_folder(home / "metadata")
        documents = Documents(home / "metadata", write)
        documents.write(files.of(root, new_targets([targets], [releases]), new_packages(online["deltas"], bins=bins)))


def require_outside(folder: Path, home: Path) -> None:
    """Refuse a folder for offline keys that lies in the server's home.

    Raises:
        ConfigurationError: It does.
    """
    if folder.resolve().is_relative_to(home.resolve()):
        raise ConfigurationError(
            f"{folder} lies in the server's home. Who breaks into the server must not find the offline keys: choose "
            "another folder (--keys, LAMELLA_OFFLINE_KEYS)."
        )


def require_empty(home: Path) -> None:
    """Refuse a home that has metadata, or has lost some of it; the first documents of a cut-off attempt do not count.

    Raises:
        ConfigurationError: It does.
    """
    names = {path.name for path in (home / "metadata").glob("*.json")}
    if "timestamp.json" in names:
        raise ConfigurationError(f"{home} has keys and metadata already. See: lamella trust show")
    if later := sorted(name for name in names if not name.startswith("1.")):
        raise ConfigurationError(f"{home} has {later[0]} but no timestamp.json. Restore its metadata from a backup.")


class _Signed:
    """The first version of every document, in the order in which they are written."""

    def __init__(self, offline: Sealer, online: Sealer) -> None:
        self._offline = offline
        self._online = online

    def of(self, root: Root, targets: Targets, packages: Targets) -> dict[str, bytes]:
        bins = list(bins_of(packages).get_roles())
        files = [
            ("root", self._seal(self._offline, "root", Metadata(root), root)),
            ("targets", self._seal(self._offline, "targets", Metadata(targets), root)),
            ("packages", self._seal(self._offline, "packages", Metadata(packages), targets)),
            ("releases", self._seal(self._offline, "releases", Metadata(Targets()), targets)),
            *((name, self._seal(self._online, name, Metadata(Targets()), packages)) for name in bins),
        ]
        meta = {f"{name}.json": reference(name, 1, content) for name, content in files[1:]}
        snapshot = self._seal(self._online, "snapshot", Metadata(Snapshot(meta=meta)), root)
        timestamp = Timestamp(snapshot_meta=reference("snapshot", 1, snapshot))
        files += [
            ("snapshot", snapshot),
            ("timestamp", self._seal(self._online, "timestamp", Metadata(timestamp), root)),
        ]
        return {file_name(name, 1): content for name, content in files}

    def _seal(
        self,
        sealer: Sealer,
        document: str,
        metadata: Metadata[Document],
        delegator: Root | Targets,
    ) -> bytes:
        sealer.seal(document, metadata, [delegator])
        return to_bytes(document, metadata)


def _root(roots: Sequence[Key], threshold: int, *, targets: Key, online: Mapping[str, Key]) -> Root:
    root = Root(consistent_snapshot=True)
    for key in roots:
        root.add_key(key, "root")
    root.roles["root"].threshold = threshold
    root.add_key(targets, "targets")
    for role in ("snapshot", "timestamp"):
        root.add_key(online[role], role)
    return root
