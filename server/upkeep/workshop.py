"""What upkeep works on, and from when on it leaves things alone."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from delta_updates import DeltaError, build_package
from delta_updates.workers import usable_cores
from server.artifacts import holds
from server.errors import ServerError
from server.files import make_folder
from server.trees import materialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.artifacts import ArtifactStore
    from server.config import Settings
    from server.registry import PackageRecord, Registry
    from server.signing import SignedMetadata


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """An opened home."""

    settings: Settings
    registry: Registry
    artifacts: ArtifactStore
    metadata: SignedMetadata

    def long_ago(self) -> datetime:
        """What is younger may be in the making: artifacts come before the rows that name them."""
        return datetime.now(UTC) - timedelta(hours=self.settings.grace_hours)

    def unnamed(self) -> Iterator[str]:
        """Digests that no row names, put long ago."""
        before = self.long_ago()
        # Listed first: what is put between the two questions is named by the second answer or young.
        old = [entry.digest for entry in self.artifacts.everything() if entry.stored_at < before]
        named = {artifact.digest for artifact in self.registry.named_artifacts()}
        return (digest for digest in old if digest not in named)

    def work_folders(self) -> Iterator[Path]:
        """Folders of work that was cut off long ago."""
        before = self.long_ago().timestamp()
        home = self.settings.home
        for folder in sorted((*home.glob("work/attempt-*"), *home.glob("work/candidate-*"), *home.glob("import-*"))):
            if folder.stat().st_mtime < before:
                yield folder

    def rebuild(self, package: PackageRecord) -> bool:
        """Build a package anew from its versions and store it, if that gives the very bytes that were signed."""
        work = self.settings.work_dir
        make_folder(work)
        with tempfile.TemporaryDirectory(dir=work, prefix="attempt-") as folder:
            out, source = Path(folder) / "package", None
            try:
                target = self._tree(Path(folder), package.model, package.version)
                if package.source_version is not None:
                    source = self._tree(Path(folder), package.model, package.source_version)
                build_package(source, target, out, workers=usable_cores())
            except (ServerError, DeltaError):
                return False
            if (_sha256(out), out.stat().st_size) != (package.sha256, package.length):
                return False
            self.artifacts.put_file(out)
        return holds(self.artifacts, package.sha256)

    def _tree(self, folder: Path, model: str, version: int) -> Path:
        tree = folder / f"v{version}"
        materialise(self.registry, self.artifacts, model=model, version=version, folder=tree)
        return tree


def remove_folder(folder: Path) -> None:
    """Remove a work folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
