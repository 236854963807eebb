"""Who signs what: the roles, how they delegate to each other, and how long their documents hold.

::

    root  (offline, 2 of 3 by default)
    ├── targets  (offline): holds no files, only says who may sign which
    │   ├── releases  (offline): manifests/MODEL/VERSION.json, which is what makes a version
    │   └── packages  (the targets key): which key signs the bins, and how many there are
    │       └── deltas-00, deltas-01, ...  (online): packages/MODEL/VERSION/*.lmpkg, by the hash of the path
    ├── snapshot  (online): the newest version of each document above
    └── timestamp  (online): the newest snapshot

A bin's key cannot make a version: a package only counts when it rebuilds the tree whose hash `releases` signed.

Source: TUF specification 1.0, sections 2.1 and 4; TAP 15 for the bins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self

from tuf.api.metadata import DelegatedRole, Delegations, Key, SuccinctRoles, Targets
from tuf.ngclient import UpdaterConfig

from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.config import Settings

OFFLINE: Final = ("root", "targets", "releases")
ONLINE: Final = ("deltas", "snapshot", "timestamp")
MIN_BINS, MAX_BINS = 2, 4096

_PATHS: Final = {"releases": "manifests/*/*.json", "packages": "packages/*/*/*.lmpkg"}
_BIN: Final = re.compile(r"deltas-[0-9a-f]{1,8}")
DOCUMENT_NAME: Final = re.compile(
    r"timestamp\.json|[1-9][0-9]{0,8}\.(root|targets|snapshot|releases|packages|deltas-[0-9a-f]{1,8})\.json"
)
# What python-tuf's client reads at most; a larger document would be one that no device accepts.
_CLIENT: Final = UpdaterConfig()


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """How long a document holds from the moment it is signed, by the role whose key signs it."""

    root: timedelta
    targets: timedelta
    releases: timedelta
    deltas: timedelta
    snapshot: timedelta
    timestamp: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What the operator has set."""
        return cls(
            root=timedelta(days=settings.root_expiry_days),
            targets=timedelta(days=settings.targets_expiry_days),
            releases=timedelta(days=settings.releases_expiry_days),
            deltas=timedelta(days=settings.deltas_expiry_days),
            snapshot=timedelta(days=settings.snapshot_expiry_days),
            timestamp=timedelta(hours=settings.timestamp_expiry_hours),
        )

    def for_document(self, document: str) -> timedelta:
        """The lifetime of a document such as ``releases`` or ``deltas-1f``."""
        lifetime: timedelta = getattr(self, key_role(document))
        return lifetime


def key_role(document: str) -> str:
    """The role whose key signs a document: ``packages`` is the targets key's, a bin the deltas key's."""
    return "deltas" if _BIN.fullmatch(document) else "targets" if document == "packages" else document


def file_name(document: str, version: int) -> str:
    """The name under which devices ask for a document (consistent snapshots)."""
    return "timestamp.json" if document == "timestamp" else f"{version}.{document}.json"


def max_bytes(document: str) -> int:
    """How much of a document a device reads at most."""
    limits = {
        "root": _CLIENT.root_max_length,
        "snapshot": _CLIENT.snapshot_max_length,
        "timestamp": _CLIENT.timestamp_max_length,
    }
    return limits.get(document, _CLIENT.targets_max_length)


def new_targets(targets: Sequence[Key], releases: Sequence[Key]) -> Targets:
    """Targets metadata that holds no files and delegates manifests to ``releases`` and packages to the bins."""
    keys = {"releases": releases, "packages": targets}
    roles = {
        # Terminating: what a role does not list is nowhere else, so no other role is ever asked for its paths.
        name: DelegatedRole(name, [key.keyid for key in keys[name]], 1, terminating=True, paths=[path])
        for name, path in _PATHS.items()
    }
    return Targets(delegations=Delegations({key.keyid: key for key in (*targets, *releases)}, roles))


def require_bins(bins: int) -> None:
    """Refuse a number of bins that does not work.

    Raises:
        ConfigurationError: It is no power of two, or out of bounds.
    """
    if not MIN_BINS <= bins <= MAX_BINS or bins & (bins - 1):
        raise ConfigurationError(f"The number of bins must be a power of two, {MIN_BINS} to {MAX_BINS}; got {bins}.")


def new_packages(deltas: Key, *, bins: int) -> Targets:
    """The list of bins: ``bins`` of them, all signed by one key."""
    succinct = SuccinctRoles([deltas.keyid], 1, bins.bit_length() - 1, "deltas")
    return Targets(delegations=Delegations({deltas.keyid: deltas}, succinct_roles=succinct))


def bins_of(packages: Targets) -> SuccinctRoles:
    """The bins that a list of bins names.

    Raises:
        ConfigurationError: It names none.
    """
    if packages.delegations is None or packages.delegations.succinct_roles is None:
        raise ConfigurationError("The metadata named packages lists no bins. Restore metadata from a backup.")
    return packages.delegations.succinct_roles
