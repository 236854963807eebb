"""Which packages a fleet may still need: a pure decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.offers import cheapest_chain

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from server.registry.records import PackageRecord


@dataclass(frozen=True, kw_only=True)
class Field:
    """What a model's fleet looks like.

    Attributes:
        released: Released versions.
        installed: Versions that devices have which are not revoked.
        wanted: Versions that a device was offered and may still be on its way to, or that anything else points at.
        signed: Versions whose manifests are signed; chains lead over no others.
    """

    released: AbstractSet[int]
    installed: AbstractSet[int]
    wanted: AbstractSet[int]
    signed: AbstractSet[int]


def dispensable(packages: tuple[PackageRecord, ...], *, field: Field, keep_versions: int) -> tuple[PackageRecord, ...]:
    """The packages of released versions that no device needs for what it can be offered.

    Kept are, for each of the newest ``keep_versions`` and every wanted version: the full package, deltas from one of
    those newest and from every installed version, and the cheapest chain from every installed version.

    Args:
        packages: Those of one model.
        field: Its fleet.
        keep_versions: How many of the newest releases keep their packages.
    """
    newest = frozenset(sorted(field.released)[-keep_versions:])
    targets = newest | (field.wanted & field.released)
    sources = newest | field.installed | {None}
    ours = [package for package in packages if package.version in field.released]
    deltas = [package for package in ours if package.source_version is not None and package.version in field.signed]
    kept = {package.path for package in ours if package.version in targets and package.source_version in sources}
    for target in targets:
        for source in field.installed:
            kept |= {step.path for step in cheapest_chain(deltas, source=source, target=target)}
    return tuple(package for package in ours if package.path not in kept)
