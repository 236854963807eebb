"""Which version a device is offered, and which packages take it there."""

from __future__ import annotations

import heapq
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from delta_updates.offer import MAX_CHAIN
from server.errors import NotFoundError
from server.rollouts import decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from delta_updates import UpdateQuery
    from server.registry import DeviceCase, PackageRecord, Registry, VersionRecord
    from server.rollouts import Explanation


def explain(registry: Registry, device_id: str, *, installed_version: int | None, is_full: bool = False) -> Explanation:
    """Which version a device shall have now, and why; rollouts whose reports wait to be counted are counted first.

    Args:
        registry: Where the device is enrolled.
        device_id: The device.
        installed_version: What it runs.
        is_full: With a reason for each rollout of another channel, for people.

    Raises:
        NotFoundError: There is no such device.
    """
    case = registry.device_case(device_id, installed_version=installed_version, is_full=is_full)
    if case.due:
        for rollout_id in case.due:
            registry.settle_rollout(rollout_id)
        case = registry.device_case(device_id, installed_version=installed_version, is_full=is_full)
    return explained(case)


def explained(case: DeviceCase) -> Explanation:
    """What follows from a case in which no rollout is due."""
    decided = decide(case.facts, case.releases, case.rollouts, case.now)
    # Windows open and soaks end; every other change is somebody's write.
    return replace(decided, is_time_bound=any(rollout.state == "running" for rollout in case.rollouts))


def choose_package(
    query: UpdateQuery, *, latest: VersionRecord, installed_hash: str | None, packages: Sequence[PackageRecord]
) -> PackageRecord | None:
    """The first of `packages_for`; None when the device needs nothing, or there is none."""
    found = packages_for(query, latest=latest, installed_hash=installed_hash, packages=packages)
    return next(iter(found), None)


def packages_for(
    query: UpdateQuery, *, latest: VersionRecord, installed_hash: str | None, packages: Sequence[PackageRecord]
) -> tuple[PackageRecord, ...]:
    """The packages that a device can use, fewest bytes first; none when it needs nothing.

    Args:
        query: What the device says it has.
        latest: The version that it shall have.
        installed_hash: The tree hash that the registry knows for the version the device says it has.
        packages: The packages of ``latest``.
    """
    if has_nothing_to_do(query, latest):
        return ()
    # A delta only onto bytes that we know. Anything else, damage included, is repaired by the full package.
    is_known = query.installed_hash is not None and query.installed_hash == installed_hash
    sources = {None, query.installed_version} if is_known and not query.only_full else {None}
    usable = (package for package in packages if package.source_version in sources)
    # Of two of one length the delta, which writes less.
    return tuple(sorted(usable, key=lambda package: (package.length, package.source_version is None)))


def has_nothing_to_do(query: UpdateQuery, latest: VersionRecord) -> bool:
    """Whether a device has the version that it shall have, or a newer one."""
    has = query.installed_version
    if has == latest.number:
        return query.installed_hash in {None, latest.manifest.tree_hash}
    # A version never goes down on a device, also not when the newest release was taken back.
    return has is not None and has > latest.number


def known_hash(registry: Registry, query: UpdateQuery, *, latest: VersionRecord) -> str | None:
    """The tree hash of the version that a device says it has; None when there is no such version."""
    if query.installed_version is None:
        return None
    if query.installed_version == latest.number:
        return latest.manifest.tree_hash
    try:
        return registry.version(query.model, query.installed_version).manifest.tree_hash
    except NotFoundError:
        return None


def cheapest_chain(deltas: Sequence[PackageRecord], *, source: int, target: int) -> tuple[PackageRecord, ...]:
    """The deltas of fewest bytes that lead from one version to another, in order; empty when none do.

    A path of one delta counts as well. Source: E. W. Dijkstra, A note on two problems in connexion with graphs (1959),
    with the number of steps bounded.
    """
    # The running number decides between equals: packages have no order of their own.
    ticket = count()
    waiting: list[tuple[int, int, int, int, tuple[PackageRecord, ...]]] = [(0, 0, next(ticket), source, ())]
    fewest_steps: dict[int, int] = {}
    while waiting:
        length, steps, _, version, path = heapq.heappop(waiting)
        if version == target:
            return path
        # What comes later from here is longer; it is of use only with fewer steps left behind it.
        if steps == MAX_CHAIN or fewest_steps.get(version, MAX_CHAIN) <= steps:
            continue
        fewest_steps[version] = steps
        for delta in deltas:
            if delta.source_version == version and version < delta.version <= target:
                total = length + delta.length
                heapq.heappush(waiting, (total, steps + 1, next(ticket), delta.version, (*path, delta)))
    return ()
