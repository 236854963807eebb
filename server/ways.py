"""Which packages bring a device to the version that it shall have: all that a check reads, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.errors import ConflictError, NotFoundError
from server.offers import cheapest_chain, choose_package, explain, explained, has_nothing_to_do

if TYPE_CHECKING:
    from collections.abc import Sequence

    from delta_updates import UpdateQuery
    from server.registry import OfferRecord, PackageRecord, Registry, VersionRecord
    from server.rollouts import Explanation
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
class _Question:
    """What a device asks, and of whom."""

    registry: Registry
    signed: Signed
    device_id: str
    query: UpdateQuery
    room: Room


def find_way(registry: Registry, signed: Signed, device_id: str, query: UpdateQuery, room: Room) -> Found:
    """What a device is to be offered now.

    Raises:
        NotFoundError: There is no such device.
        ConflictError: No package fits on its disk.
    """
    asked = _Question(registry=registry, signed=signed, device_id=device_id, query=query, room=room)
    with registry.reading():
        case = registry.device_case(device_id, installed_version=query.installed_version)
        if not case.due:
            return _found(asked, explained(case))
    # Reports wait to be counted, which is written.
    decided = explain(registry, device_id, installed_version=query.installed_version)
    with registry.reading():
        return _found(asked, decided)


def _found(asked: _Question, decided: Explanation) -> Found:
    way = None if decided.version is None else _way(asked, decided.version, decided.rollout_id)
    return Found(way=way, is_time_bound=decided.is_time_bound)


def _way(asked: _Question, number: int, rollout_id: int | None) -> Way | None:
    registry, query = asked.registry, asked.query
    version = registry.version(query.model, number)
    if has_nothing_to_do(query, version):
        return None
    source = _source(registry, query, version)
    package, missing = _package(query, version, source, registry.packages(query.model, number), asked.room)
    if package is None:
        return None
    # Where the package itself does not fit, a longer way may.
    chain = _chain(asked, source, version, limit=None if missing else package.length)
    if missing and not chain:
        raise _too_full(number, missing)
    return Way(
        version=version,
        package=package,
        chain=chain,
        rollout_id=rollout_id,
        open_offer=registry.open_offer(asked.device_id, package_path=package.path, rollout_id=rollout_id),
    )


def _too_full(number: int, missing: int) -> ConflictError:
    return ConflictError(
        f"v{number} does not fit on this device's disk: {missing} more bytes ({missing / 1e6:.1f} MB) must be free "
        "for its smallest package. Free some space and ask again."
    )


def _source(registry: Registry, query: UpdateQuery, latest: VersionRecord) -> VersionRecord | None:
    """What the registry knows of the version that the device says it has."""
    if query.installed_version is None or query.installed_version == latest.number:
        return None if query.installed_version is None else latest
    try:
        return registry.version(query.model, query.installed_version)
    except NotFoundError:
        return None


def _package(
    query: UpdateQuery,
    version: VersionRecord,
    source: VersionRecord | None,
    packages: Sequence[PackageRecord],
    room: Room,
) -> tuple[PackageRecord | None, int]:
    """The package of fewest bytes that fits, and 0; when none does, of all, and how many bytes are missing."""
    known = source.manifest if source is not None else None

    def choose(among: Sequence[PackageRecord]) -> PackageRecord | None:
        return choose_package(query, latest=version, installed_hash=known.tree_hash if known else None, packages=among)

    def missing(package: PackageRecord) -> int:
        # A full package links no file of what is there, which may be damaged.
        return room.missing((package,), (None if package.source_version is None else known, version.manifest))

    fitting = choose([package for package in packages if not missing(package)])
    if fitting is not None:
        return fitting, 0
    usable = [package for package in packages if choose((package,)) is not None]
    return choose(usable), min(map(missing, usable), default=0)


def _chain(asked: _Question, source: VersionRecord | None, version: VersionRecord, *, limit: int | None) -> Chain:
    """Deltas that reach the same version with fewer than ``limit`` bytes, and that fit; empty when none do."""
    if source is None or source.manifest.tree_hash != asked.query.installed_hash or asked.query.only_full:
        return ()
    path = _cheapest(asked, source, version, limit=limit)
    made = [asked.registry.version(version.model, delta.version) for delta in path]
    trees = [one.manifest for one in (source, *made)]
    return () if asked.room.missing(path, trees) else tuple(zip(path, made, strict=True))


def _cheapest(
    asked: _Question, source: VersionRecord, version: VersionRecord, *, limit: int | None
) -> Sequence[PackageRecord]:
    """The cheapest chain of versions that are all signed now; empty when it is not fewer than ``limit`` bytes."""
    deltas = asked.registry.deltas(version.model)
    path = cheapest_chain(deltas, source=source.number, target=version.number)
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
