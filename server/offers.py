"""Which package takes a device to the latest release: a pure decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from delta_updates import UpdateQuery
    from server.registry import PackageRecord, VersionRecord


def choose_package(
    query: UpdateQuery, *, latest: VersionRecord, installed_hash: str | None, packages: Sequence[PackageRecord]
) -> PackageRecord | None:
    """The package to offer, or None when the device needs nothing.

    Args:
        query: What the device says it has.
        latest: The latest release of its model.
        installed_hash: The tree hash that the registry knows for the version the device says it has.
        packages: The packages of ``latest``.
    """
    has = query.installed_version
    # A version never goes down on a device, also not when the newest release was taken back.
    if has is not None and has > latest.number:
        return None
    if has == latest.number and query.installed_hash in {None, latest.manifest.tree_hash}:
        return None
    # A delta only onto bytes that we know. Anything else, damage included, is repaired by the full package.
    is_known = query.installed_hash is not None and query.installed_hash == installed_hash
    by_source = {package.source_version: package for package in packages}
    if is_known and not query.only_full and has in by_source:
        return by_source[has]
    return by_source.get(None)
