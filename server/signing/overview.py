"""Who is trusted today, where each key is, and what has to be done next."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from server.signing.documents import Chain, Documents
from server.signing.keys import KeyFolder, short
from server.signing.proposal import Proposal
from server.signing.repository import require_initialised
from server.signing.roles import OFFLINE, ONLINE, bins_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from server.signing.roles import Lifetimes


@dataclass(frozen=True, kw_only=True)
class RoleOverview:
    """One role.

    Attributes:
        role: Its name.
        is_offline: Whether its keys are kept away from the server.
        version: Of its document; for deltas, of the list of bins.
        expires: When its document does; for deltas, when the first of the bins does.
        days_left: Until then.
        threshold: How many of the keys must sign.
        keys: Key id and file of each key; None where the private half is on no folder that was searched.
    """

    role: str
    is_offline: bool
    version: int
    expires: datetime
    days_left: int
    threshold: int
    keys: tuple[tuple[str, Path | None], ...]


@dataclass(frozen=True, kw_only=True)
class TrustOverview:
    """All roles, how many bins there are, and what to do next."""

    roles: tuple[RoleOverview, ...]
    bins: int
    versions_signed: int
    next_steps: tuple[str, ...]


def overview(
    home: Path, *, searched: Sequence[Path], lifetimes: Lifetimes, warn_days: int, now: datetime | None = None
) -> TrustOverview:
    """Describe the trust of a home.

    Args:
        home: The server's home.
        searched: Folders in which to look for keys, beside the home's own.
        lifetimes: How long documents hold, to tell which should be renewed.
        warn_days: From how many days before its expiry a document is urgent.
        now: The time; None asks the clock.

    Raises:
        ConfigurationError, SigningError: There is no trust here, or it is damaged.
    """
    require_initialised(home)
    chain, now = Chain(Documents(home / "metadata", _never)), now or datetime.now(UTC)
    keyids = Proposal.of(chain, {}).keyids
    bins = bins_of(chain.packages.signed)
    documents = {
        "root": (chain.root.signed.version, chain.root.signed.expires),
        "targets": (chain.targets.signed.version, min(chain.targets.signed.expires, chain.packages.signed.expires)),
        "releases": (chain.releases.signed.version, chain.releases.signed.expires),
        "deltas": (chain.packages.signed.version, min(chain.bin(name).signed.expires for name in bins.get_roles())),
        "snapshot": (chain.snapshot.signed.version, chain.snapshot.signed.expires),
        "timestamp": (chain.timestamp.signed.version, chain.timestamp.signed.expires),
    }
    thresholds = {
        **{role: chain.root.signed.roles[role].threshold for role in ("root", "targets", "snapshot", "timestamp")},
        "releases": chain.targets.signed.get_delegated_role("releases").threshold,
        "deltas": bins.threshold,
    }
    folders = [KeyFolder(folder) for folder in (home / "keys", *searched)]
    roles = []
    for role in (*OFFLINE, *ONLINE):
        version, expires = documents[role]
        files = {keyid: path for folder in folders for keyid, path in folder.find(keyids(role)).items()}
        roles.append(
            RoleOverview(
                role=role,
                is_offline=role in OFFLINE,
                version=version,
                expires=expires,
                days_left=(expires - now) // timedelta(days=1),
                threshold=thresholds[role],
                keys=tuple((keyid, files.get(keyid)) for keyid in keyids(role)),
            )
        )
    steps = tuple(step for entry in roles for step in _steps(entry, home, lifetimes, warn_days))
    return TrustOverview(
        roles=tuple(roles),
        bins=bins.number_of_bins,
        versions_signed=len(chain.releases.signed.targets),
        next_steps=steps or ("Nothing: all is signed for long enough, and every online key is here.",),
    )


def _steps(entry: RoleOverview, home: Path, lifetimes: Lifetimes, warn_days: int) -> list[str]:
    here = [path for _, path in entry.keys if path is not None]
    steps = []
    is_due = timedelta(days=entry.days_left) < lifetimes.for_document(entry.role) / 2
    if entry.is_offline and (is_due or entry.days_left < warn_days):
        urgency = "Now" if entry.days_left < warn_days else "Some time"
        steps.append(f"{urgency}: lamella trust renew (the {entry.role} metadata expires in {entry.days_left} days).")
    if not entry.is_offline and len(here) < entry.threshold:
        steps.append(
            f"The {entry.role} key {short(entry.keys[0][0])} is not in {home / 'keys'}. Restore it from a backup, or: "
            f"lamella trust rotate {entry.role}"
        )
    if entry.role == "root" and len({path.parent for path in here}) == 1 and len(here) >= entry.threshold > 1:
        steps.append(
            f"Give each root key its own holder: {len(here)} of them lie together in {here[0].parent}, where one thief "
            "finds enough of them."
        )
    return steps


def _never(_path: Path, _content: bytes) -> None:
    raise AssertionError("an overview writes nothing")
