"""Collecting garbage: packages that no device needs, then artifacts that no row names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.files import locked
from server.upkeep.workshop import remove_folder

if TYPE_CHECKING:
    from server.registry import PackageRecord
    from server.upkeep.workshop import Workshop


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What was removed, or would be; ``freed_bytes`` counts artifacts only."""

    packages: tuple[PackageRecord, ...]
    artifacts: tuple[str, ...]
    leftovers: tuple[str, ...]
    freed_bytes: int


def collect(shop: Workshop, *, dry_run: bool = False) -> Collected:
    """Remove packages that no device needs, artifacts that no row names, and what cut-off work left.

    Nothing is offered any more before it is unsigned, and nothing is signed any more before it is removed: whatever
    moment a crash comes at, collecting again does the rest.

    Raises:
        ServerError: Database, store or metadata do not answer; what is done already stays done.
    """
    with locked(shop.settings.home / ".gc.lock"):
        keep, registry = shop.settings.keep_versions, shop.registry
        packages = [
            package
            for model in registry.models()
            for package in registry.collect_packages(
                model, keep_versions=keep, signed=shop.metadata.signed_versions(model), dry_run=dry_run
            )
        ]
        if not dry_run:
            # All that ever were: the time before may have ended between the two steps.
            shop.metadata.drop_packages(registry.collected_paths())
        before = shop.long_ago()
        lengths = {entry.digest: entry.length for entry in shop.artifacts.everything()}
        digests = [*shop.unnamed()]
        if dry_run:
            digests += _only_named_by(shop, packages)
        else:
            digests = [digest for digest in digests if shop.artifacts.remove(digest, stored_before=before)]
        leftovers = (*shop.artifacts.abandoned(before=before), *(folder.name for folder in shop.work_folders()))
        if not dry_run:
            shop.artifacts.remove_abandoned(before=before)
            for folder in shop.work_folders():
                remove_folder(folder)
        return Collected(
            packages=tuple(packages),
            artifacts=tuple(digests),
            leftovers=leftovers,
            freed_bytes=sum(lengths.get(digest, 0) for digest in digests),
        )


def _only_named_by(shop: Workshop, packages: list[PackageRecord]) -> list[str]:
    """Artifacts that only these packages name, put long ago."""
    paths = {package.path for package in packages}
    named = {entry.digest for entry in shop.registry.named_artifacts() if entry.named_by not in paths}
    mine, before = {package.sha256 for package in packages}, shop.long_ago()
    return [
        entry.digest
        for entry in shop.artifacts.everything()
        if entry.digest in mine and entry.digest not in named and entry.stored_at < before
    ]
