"""Versions as folders on the server's own disk, for training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import FederationError
from server.publishing import materialise

if TYPE_CHECKING:
    from pathlib import Path

    from server.artifacts import ArtifactStore
    from server.config import Settings
    from server.registry import Registry, VersionRecord


def tree_of(settings: Settings, registry: Registry, artifacts: ArtifactStore, *, model: str, version: int) -> Path:
    """A version's tree, made from the artifact store once (hard links) and then reused."""
    record = registry.version(model, version)
    folder = settings.home / "trees" / record.manifest.tree_hash
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        materialise(registry, artifacts, model=model, version=version, folder=folder)
    return folder


def base_of(registry: Registry, version: VersionRecord) -> VersionRecord:
    """The base version that a version stands on: itself, or the one with its base hash."""
    if version.manifest.kind == "base":
        return version
    for candidate in registry.versions(version.model):
        if candidate.manifest.kind == "base" and candidate.manifest.base_hash == version.manifest.base_hash:
            return candidate
    raise FederationError(f"The base {version.manifest.base_hash[:12]} of {version.model!r} is not in the registry.")


def newest_release(registry: Registry, model: str) -> VersionRecord:
    """The newest released version of a model.

    Raises:
        FederationError: There is none yet.
    """
    latest = registry.latest_released(model)
    if latest is None:
        raise FederationError(
            f"No version of {model!r} is released yet. Start with: lamella base import --model {model}"
        )
    return latest
