"""Which packages bring a device to the version that it shall have: all that a check looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from delta_updates.package import FORMAT_VERSION
from server.errors import ConflictError, NotFoundError
from server.offers import cheapest_chain, explained, has_nothing_to_do, packages_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from delta_updates import UpdateQuery
    from server.registry import AskingDevice, OfferRecord, PackageRecord, Registry, Standing, VersionRecord
    from server.room import Room

    Chain = tuple[tuple[PackageRecord, VersionRecord], ...]


class Signed(Protocol):
    """Knows what is signed; asked last, as it reads and checks the metadata."""

    def signed_versions(self, model: str) -> frozenset[int]:
        """The versions whose manifests are signed now."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a device gets to a version; ``chain``, where it is fewer bytes than ``package``, is tried first."""

    version: VersionRecord
    package: PackageRecord
    chain: Chain
    rollout_id: int | None
    open_offer: OfferRecord | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """The way, None when there is nothing to do, and whether time alone may change that."""

    way: Way | None
    is_time_bound: bool


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a device asks or would ask, and of whom; it reads packages up to ``last_format``."""

    registry: Registry
    standing: Standing
    signed: Signed
    device_id: str
    query: UpdateQuery
    room: Room
    last_format: int = FORMAT_VERSION


def find_way(
    registry: Registry,
    signed: Signed,
    asking: AskingDevice,
    query: UpdateQuery,
    room: Room,
    *,
    last_format: int = FORMAT_VERSION,
) -> Found:
    """What a device that asks is to be offered now; nothing is read that another device's check has read already.

    Raises:
        ConflictError: No package fits on its disk, or it reads none of them.
    """
    device_id = asking.device.device_id
    case = registry.case_of(asking, installed_version=query.installed_version)
    if case.due:
        # Reports wait to be counted, which is written; then everything may be another.
        for rollout_id in case.due:
            registry.settle_rollout(rollout_id)
        asking = registry.asking(device_id)
        case = registry.case_of(asking, installed_version=query.installed_version)
    asked = Question(
        registry=registry,
        standing=registry.standing(asking.token),
        signed=signed,
        device_id=device_id,
        query=query,
        room=room,
        last_format=last_format,
    )
    decided = explained(case)
    way = None if decided.version is None else way_to(asked, decided.version, decided.rollout_id)
    return Found(way=way, is_time_bound=decided.is_time_bound)


def way_to(asked: Question, number: int, rollout_id: int | None) -> Way | None:
    """How a device gets to a version; None when it has nothing to do, or there is no package for it.

    Raises:
        ConflictError: No package fits on its disk, or it reads none of them.
    """
    query = asked.query
    version = asked.standing.version(query.model, number)
    if has_nothing_to_do(query, version):
        return None
    usable, source = usable_packages(asked, version)
    package, missing = _cheapest_package(usable, version, source, asked.room)
    if package is None:
        return None
    # Before `_chain`, which may read what is signed from the disk: who must not wait is told so here (`from_memory`).
    open_offer = asked.registry.open_offer(asked.device_id, package_path=package.path, rollout_id=rollout_id)
    # Where the package itself does not fit, a longer way may.
    chain = _chain(asked, source, version, limit=None if missing else package.length)
    if missing and not chain:
        raise _too_full(number, missing)
    return Way(
        version=version,
        package=package,
        chain=chain,
        rollout_id=rollout_id,
        open_offer=open_offer,
    )


def _too_full(number: int, missing: int) -> ConflictError:
    return ConflictError(
        f"v{number} does not fit on this device's disk: {missing} more bytes ({missing / 1e6:.1f} MB) must be free "
        "for its smallest package. Free some space and ask again."
    )


def _source(asked: Question, latest: VersionRecord) -> VersionRecord | None:
    """What the registry knows of the version that the device says it has."""
    query = asked.query
    if query.installed_version is None or query.installed_version == latest.number:
        return None if query.installed_version is None else latest
    try:
        return asked.standing.version(query.model, query.installed_version)
    except NotFoundError:
        return None


def usable_packages(asked: Question, version: VersionRecord) -> tuple[tuple[PackageRecord, ...], VersionRecord | None]:
    """The packages that bring a device to ``version`` in one step, the best first, and what it has, where known.

    Raises:
        ConflictError: The device reads none of them.
    """
    source = _source(asked, version)
    found = packages_for(
        asked.query,
        latest=version,
        installed_hash=None if source is None else source.manifest.tree_hash,
        packages=asked.standing.packages(version.model, version.number),
    )
    readable = tuple(package for package in found if package.format <= asked.last_format)
    if found and not readable:
        raise ConflictError(
            f"v{version.number} is only there in packages of format {min(package.format for package in found)}, and "
            f"this device's agent reads formats up to {asked.last_format}. Update the agent (`pip install -U "
            "lamella`), and ask again."
        )
    return readable, source


def _cheapest_package(
    usable: Sequence[PackageRecord], version: VersionRecord, source: VersionRecord | None, room: Room
) -> tuple[PackageRecord | None, int]:
    """The first package that fits, and 0; when none does, the first of all, and how many bytes are missing."""

    def missing(package: PackageRecord) -> int:
        # A full package links no file of what is there, which may be damaged.
        has = None if package.source_version is None or source is None else source.manifest
        return room.missing((package,), (has, version.manifest))

    fitting = next((package for package in usable if not missing(package)), None)
    if fitting is not None:
        return fitting, 0
    return next(iter(usable), None), min(map(missing, usable), default=0)


def _chain(asked: Question, source: VersionRecord | None, version: VersionRecord, *, limit: int | None) -> Chain:
    """Deltas that reach the same version with fewer than ``limit`` bytes, and that fit; empty when none do."""
    if source is None or source.manifest.tree_hash != asked.query.installed_hash or asked.query.only_full:
        return ()
    path = _cheapest(asked, source, version, limit=limit)
    made = [asked.standing.version(version.model, delta.version) for delta in path]
    trees = [one.manifest for one in (source, *made)]
    return () if asked.room.missing(path, trees) else tuple(zip(path, made, strict=True))


def _cheapest(
    asked: Question, source: VersionRecord, version: VersionRecord, *, limit: int | None
) -> Sequence[PackageRecord]:
    """The cheapest chain of versions that are all signed now; empty when it is not fewer than ``limit`` bytes."""
    deltas = [delta for delta in asked.standing.deltas(version.model) if delta.format <= asked.last_format]
    path = asked.standing.keep(
        ("chain", version.model, source.number, version.number, asked.last_format),
        lambda: cheapest_chain(deltas, source=source.number, target=version.number),
    )
    if not _is_cheaper(path, limit):
        return ()
    # A device refuses a step whose manifest is not signed any more.
    known = asked.signed.signed_versions(version.model)
    if all(delta.version in known for delta in path):
        return path
    left = [delta for delta in deltas if delta.version in known]
    path = cheapest_chain(left, source=source.number, target=version.number)
    return path if _is_cheaper(path, limit) else ()


def _is_cheaper(path: Sequence[PackageRecord], limit: int | None) -> bool:
    """Whether several deltas are fewer bytes than one package; one delta is no chain."""
    return len(path) > 1 and (limit is None or sum(delta.length for delta in path) < limit)
