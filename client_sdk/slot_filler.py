"""Download → apply: bring the packages of one way into the free slot, and name what is there *test*."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from client_sdk.conditions import ConditionsSource, reason_to_wait
from client_sdk.device_config import DownloadPolicy
from client_sdk.disk import Disk, disk_errors, make_private_folder
from client_sdk.download import Fetcher, Progress
from client_sdk.errors import DeviceDiskError, PackageError, RefusedError
from client_sdk.offers import VerifiedOffer
from client_sdk.reports import Reporter
from client_sdk.slots import TREE, ActiveVersion, SlotStore, bytes_to_write
from client_sdk.update_result import UpdateResult
from delta_updates import ApplyResult, DeltaError, KnownHashes, Outcome, StorageError, VersionManifest, apply_package

_LOOK_EVERY_S = 30.0


class PostponedError(Exception):
    """A download should wait for better conditions; the message says for which. No failure, and nobody's fault."""


@dataclass(frozen=True, kw_only=True)
class SlotFiller:
    """Fills the slot that does not serve."""

    home: Path
    slots: SlotStore
    fetcher: Fetcher
    reporter: Reporter
    disk: Disk
    policy: DownloadPolicy
    conditions: ConditionsSource

    def fill(self, way: tuple[VerifiedOffer, ...], before: UpdateResult, on_progress: Progress) -> UpdateResult:
        """Download and apply into the free slot, and name it *test*; returns what was measured."""
        offer = way[-1].offer
        source = self.slots.active() if way[0].offer.package.source_version is not None else None
        try:
            # Versions between get a folder of their own beside the last one's.
            names = [*(f"v{step.offer.version}" for step in way[:-1]), TREE]
            slot, folder = self.slots.prepare(*names)
            hashes = KnownHashes()
            # The network is the slow part: meanwhile the versions' common files are read, once for all steps.
            with hashes.hashing(_files_of(source)):
                packages, filled = self._download(way, source, folder, before, on_progress)
            for step, package, name in zip(way, packages, names, strict=True):
                target = folder / name
                applied = self._apply(package, source, step.manifest, target, hashes)
                filled = replace(filled, apply_seconds=filled.apply_seconds + applied.seconds)
                source = ActiveVersion(target, step.manifest)
            self.slots.begin_test(slot, way[-1].manifest, offer.offer_id)
        except (RefusedError, DeviceDiskError) as error:
            self.reporter.queue_failure(offer.offer_id, offer.version, error)
            raise
        self.reporter.queue_outcome(offer.offer_id, offer.version, Outcome.APPLIED, filled)
        with disk_errors(self.home, "removing the applied packages"):
            for leftover in (*packages, *(folder / name for name in names[:-1])):
                self.disk.remove(leftover)
        return filled

    def _download(
        self,
        way: tuple[VerifiedOffer, ...],
        source: ActiveVersion | None,
        slot_folder: Path,
        before: UpdateResult,
        on_progress: Progress,
    ) -> tuple[list[Path], UpdateResult]:
        """Fetch every package of a way, after asking whether this is the time and the disk for it."""
        offer = way[-1].offer
        refs = [step.offer.package for step in way]
        length = sum(ref.length for ref in refs)
        self._make_ready(way, source, slot_folder, length)
        kind: Literal["delta", "chain", "full"] = "full" if refs[0].source_version is None else "delta"
        started, done = time.monotonic(), 0
        filled = replace(
            before, to_version=offer.version, package="chain" if len(way) > 1 else kind, package_bytes=length
        )
        packages, transferred = [], before.bytes_downloaded
        watched = self._watched(on_progress, offer.version)
        for ref in refs:
            package = self.home / "downloads" / ref.sha256
            transferred += self.fetcher.fetch(
                ref.path,
                package,
                length=ref.length,
                sha256=ref.sha256,
                on_progress=_shifted(watched, done, length),
            )
            packages.append(package)
            done += ref.length
        filled = replace(
            filled,
            bytes_downloaded=transferred,
            download_seconds=before.download_seconds + time.monotonic() - started,
        )
        self.reporter.queue_outcome(offer.offer_id, offer.version, Outcome.DOWNLOADED, filled)
        return packages, filled

    def _watched(self, on_progress: Progress, version: int) -> Progress:
        """Progress that looks at the conditions now and then: a download takes hours, and a train leaves its station.

        Raises:
            PostponedError: they no longer allow it; what arrived is kept, and continued when they do.
        """
        looked = time.monotonic()

        def progress(done: int, length: int) -> None:
            nonlocal looked
            on_progress(done, length)
            if time.monotonic() - looked < _LOOK_EVERY_S or done == length:
                return
            looked = time.monotonic()
            if waiting := reason_to_wait(self.policy, self.conditions(), package_bytes=length - done):
                raise PostponedError(f"v{version} waits, {done / length:.0%} of it are here: {waiting}")

        return progress

    def free_bytes(self) -> int:
        """The disk bytes that an update may use; what is left of earlier ones gives way to it.

        Raises:
            DeviceDiskError: the disk cannot be read.
        """
        _, slot_folder = self.slots.free_slot()
        with disk_errors(self.home, "looking for free space"):
            leftover = _bytes_under(slot_folder) + _bytes_under(self.home / "downloads")
            return max(0, self.disk.free_bytes(self.home) + leftover - self.policy.reserve_bytes)

    def _make_ready(
        self, way: tuple[VerifiedOffer, ...], source: ActiveVersion | None, slot_folder: Path, length: int
    ) -> None:
        """Remove what is left of other downloads, and refuse what has no room here, before the first byte.

        Raises:
            DeviceDiskError: there is no room.
            PostponedError: this is not the time.
        """
        folder = self.home / "downloads"
        wanted = tuple(step.offer.package.sha256 for step in way)
        with disk_errors(self.home, "preparing the download"):
            make_private_folder(folder)
            for other in folder.iterdir():
                if not other.name.startswith(wanted):
                    self.disk.remove(other)
            missing = max(0, length - sum(path.stat().st_size for path in folder.iterdir()))
            # What an apply that was cut off made already needs no room any more.
            free = self.disk.free_bytes(self.home) + _bytes_under(slot_folder)
        if waiting := reason_to_wait(self.policy, self.conditions(), package_bytes=missing):
            raise PostponedError(f"v{way[-1].offer.version} waits: {waiting}")
        needed = missing
        for step in way:
            needed += bytes_to_write(step.manifest, source)
            source = ActiveVersion(Path(), step.manifest)
        if needed + self.policy.reserve_bytes > free:
            raise DeviceDiskError(
                f"v{way[-1].offer.version} needs {needed / 1e6:.1f} MB on the disk that holds {self.home}, and "
                f"{self.policy.reserve_bytes / 1e6:.0f} MB have to stay free (download.reserve_bytes), but only "
                f"{free / 1e6:.1f} MB are free. Free some space and run the update again."
            )

    def _apply(
        self,
        package: Path,
        source: ActiveVersion | None,
        manifest: VersionManifest,
        tree: Path,
        hashes: KnownHashes,
    ) -> ApplyResult:
        try:
            return apply_package(
                source.tree if source else None,
                package,
                tree,
                expected_target_hash=manifest.tree_hash,
                max_target_bytes=sum(entry.length for entry in manifest.files),
                disk=self.disk,
                hashes=hashes,
            )
        except StorageError as error:
            raise DeviceDiskError(f"{error}. The old version serves on.") from error
        except DeltaError as error:
            with disk_errors(self.home, "removing a package that is of no use"):
                self.disk.remove(package)
            raise PackageError(f"The package of v{manifest.version} cannot be applied here: {error}") from error


def _shifted(on_progress: Progress, done: int, length: int) -> Progress:
    """Progress of one package of several: `done` bytes of `length` lie before it."""
    return lambda here, _length: on_progress(done + here, length)


def _files_of(version: ActiveVersion | None) -> list[Path]:
    return [version.tree / entry.path for entry in version.manifest.files] if version else []


def _bytes_under(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and path.lstat().st_nlink == 1)
