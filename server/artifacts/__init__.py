"""Artifact stores: bytes by their sha256, in a folder or in a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.artifacts.local import LocalArtifactStore
from server.artifacts.store import ArtifactStore, StoredArtifact, holds, is_whole, require_length
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from server.config import Settings

__all__ = [
    "ArtifactStore",
    "LocalArtifactStore",
    "StoredArtifact",
    "holds",
    "is_whole",
    "open_artifacts",
    "require_length",
]


def open_artifacts(settings: Settings) -> ArtifactStore:
    """The artifact store that the settings name: a bucket, or a folder in the home.

    Raises:
        ConfigurationError: Downloads are to be handed to what this store is not, or S3 is not installed.
        StorageError: The store cannot be used.
    """
    is_bucket = settings.artifacts_url is not None
    if settings.downloads == ("nginx" if is_bucket else "presigned"):
        raise ConfigurationError(
            "LAMELLA_DOWNLOADS=presigned needs a bucket (LAMELLA_ARTIFACTS_URL=s3://bucket/prefix)."
            if not is_bucket
            else "LAMELLA_DOWNLOADS=nginx serves files of this machine; with a bucket, choose presigned or stream."
        )
    if settings.artifacts_url is None:
        return LocalArtifactStore(settings.artifacts_dir)
    try:
        from server.artifacts.s3 import S3ArtifactStore  # noqa: PLC0415 - an extra, loaded by who uses it
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"LAMELLA_ARTIFACTS_URL needs the package {error.name}. Install it with: pip install 'lamella[s3]'"
        ) from error
    return S3ArtifactStore(
        settings.artifacts_url,
        cache=settings.home / "artifact-cache",
        endpoint=settings.artifacts_endpoint,
        region=settings.artifacts_region,
    )
