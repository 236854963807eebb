"""One update: check → download → apply → test → confirm | revert → report. The old slot serves throughout.

Every step leaves the device in a state that the next process understands, so a crash or a power cut anywhere is
answered by running the same thing again.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from client_sdk.disk import Disk, disk_errors, make_private_folder
from client_sdk.download import Fetcher, Progress
from client_sdk.errors import (
    DeviceDiskError,
    DeviceError,
    PackageError,
    RefusedError,
    SelfTestError,
    ServiceRefusedError,
)
from client_sdk.lock import update_lock
from client_sdk.metadata import target_url_path
from client_sdk.offers import OfferFinder, VerifiedOffer
from client_sdk.reports import Reporter, reason_of
from client_sdk.slots import MAX_BOOTS, ActiveVersion, SlotRecord, SlotStore, bytes_to_write
from client_sdk.state import DeviceState, FailedVersion, StateFile
from delta_updates import (
    ApplyResult,
    DeltaError,
    Offer,
    Outcome,
    OutcomeReport,
    StorageError,
    VersionManifest,
    apply_package,
)

SelfTest = Callable[[Path, VersionManifest], None]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one update did.

    Attributes:
        decision: `up_to_date`, `confirmed` (the new version serves) or `reverted` (it failed its self-test).
        from_version, to_version: what served before, and what the update was about.
        package: kind of the package that was applied.
        package_bytes, bytes_downloaded: its signed length, and what was transferred in this process.
        download_seconds, apply_seconds, self_test_seconds: wall time of the steps.
        reason: why it was reverted, or why a delta gave way to the full package.
    """

    decision: Literal["up_to_date", "confirmed", "reverted"]
    from_version: int | None = None
    to_version: int | None = None
    package: Literal["delta", "full"] | None = None
    package_bytes: int = 0
    bytes_downloaded: int = 0
    download_seconds: float = 0.0
    apply_seconds: float = 0.0
    self_test_seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Updater:
    """The steps, over the parts that do the work. Only one process at a time gets past `update_lock`."""

    home: Path
    states: StateFile
    slots: SlotStore
    finder: OfferFinder
    fetcher: Fetcher
    reporter: Reporter
    self_test: SelfTest
    disk: Disk

    def check(self) -> Offer | None:
        """Ask for an update and verify all that can be verified without its package.

        Raises:
            DeviceError: see `errors.py`; nothing was changed.
        """
        with update_lock(self.home):
            self.reporter.deliver()
            found = self.finder.find()
            return found.offer if found else None

    def update(self, *, on_progress: Progress) -> UpdateResult:
        """Finish what an earlier process left, then bring the device to the version it is offered.

        Raises:
            DeviceError: see `errors.py`; the old slot serves on.
        """
        with update_lock(self.home):
            try:
                result = self._update(on_progress)
            except DeviceError as error:
                with contextlib.suppress(DeviceError):
                    self._note(str(error))
                raise
            finally:
                self.reporter.deliver()
            self._note(f"{result.decision} v{result.to_version}" if result.to_version else "nothing is offered yet")
            return result

    def _update(self, on_progress: Progress) -> UpdateResult:
        recovered = self._recover()
        found = self.finder.find()
        if found:
            return self._install(found, on_progress)
        if recovered:
            return recovered
        version = self._active_version()
        return UpdateResult(decision="up_to_date", from_version=version, to_version=version)

    # --- download and apply

    def _install(self, found: VerifiedOffer, on_progress: Progress) -> UpdateResult:
        before = UpdateResult(decision="up_to_date", from_version=self._active_version())
        try:
            filled = self._fill_slot(found, before, on_progress)
        except (PackageError, ServiceRefusedError) as error:
            if found.offer.package.source_version is None:
                raise
            _logger.warning(
                "the delta to v%d is of no use (%s): one try with the full package", found.offer.version, error
            )
            full = self.finder.find(only_full=True)
            if full is None:
                raise
            filled = self._fill_slot(full, replace(before, reason=reason_of(error)), on_progress)
        return self._test(filled)

    def _fill_slot(self, found: VerifiedOffer, before: UpdateResult, on_progress: Progress) -> UpdateResult:
        """Download and apply into the free slot, and name it *test*; returns what was measured."""
        offer, manifest = found
        is_delta = offer.package.source_version is not None
        source = self.slots.active() if is_delta else None
        try:
            slot, tree = self.slots.prepare()
            package, filled = self._download(found, source, before, on_progress)
            applied = self._apply(package, source, manifest, tree)
            self.slots.begin_test(slot, manifest, offer.offer_id)
        except (RefusedError, DeviceDiskError) as error:
            self.reporter.queue_failure(offer, error)
            raise
        filled = replace(filled, apply_seconds=applied.seconds)
        self._report(offer.offer_id, offer.version, Outcome.APPLIED, filled)
        with disk_errors(self.home, "removing the applied package"):
            self.disk.remove(package)
        return filled

    def _download(
        self, found: VerifiedOffer, source: ActiveVersion | None, before: UpdateResult, on_progress: Progress
    ) -> tuple[Path, UpdateResult]:
        ref = found.offer.package
        folder = self.home / "downloads"
        package = folder / ref.sha256
        with disk_errors(self.home, "preparing the download"):
            make_private_folder(folder)
            for other in folder.iterdir():
                if not other.name.startswith(ref.sha256):
                    self.disk.remove(other)
            here = sum(path.stat().st_size for path in folder.iterdir())
            needed = max(0, ref.length - here) + bytes_to_write(found.manifest, source)
            free = self.disk.free_bytes(self.home)
        if needed > free:
            raise DeviceDiskError(
                f"v{found.offer.version} needs {needed / 1e6:.1f} MB on the disk that holds {self.home}, but only "
                f"{free / 1e6:.1f} MB are free. Free some space and run the update again."
            )
        started = time.monotonic()
        transferred = self.fetcher.fetch(
            target_url_path(ref.path), package, length=ref.length, sha256=ref.sha256, on_progress=on_progress
        )
        filled = replace(
            before,
            to_version=found.offer.version,
            package="full" if ref.source_version is None else "delta",
            package_bytes=ref.length,
            bytes_downloaded=before.bytes_downloaded + transferred,
            download_seconds=before.download_seconds + time.monotonic() - started,
        )
        self._report(found.offer.offer_id, found.offer.version, Outcome.DOWNLOADED, filled)
        return package, filled

    def _apply(self, package: Path, source: ActiveVersion | None, manifest: VersionManifest, tree: Path) -> ApplyResult:
        try:
            return apply_package(
                source.tree if source else None,
                package,
                tree,
                expected_target_hash=manifest.tree_hash,
                max_target_bytes=sum(entry.length for entry in manifest.files),
                disk=self.disk,
            )
        except StorageError as error:
            raise DeviceDiskError(f"{error}. The old version serves on.") from error
        except DeltaError as error:
            with disk_errors(self.home, "removing a package that is of no use"):
                self.disk.remove(package)
            raise PackageError(f"The package of v{manifest.version} cannot be applied here: {error}") from error

    # --- test, confirm, revert

    def _test(self, filled: UpdateResult) -> UpdateResult:
        in_test = self.slots.pointer().test
        version = self.slots.read(in_test.record) if in_test else None
        if in_test is None or version is None:
            raise DeviceDiskError("The new version is damaged on this disk before its self-test. Check the disk.")
        self.slots.count_boot()
        started = time.monotonic()
        try:
            self.self_test(version.tree, version.manifest)
        except SelfTestError as error:
            return self._revert(in_test.record, filled, reason_of(error))
        except (KeyboardInterrupt, SystemExit):
            self.slots.count_boot(-1)
            raise
        except DeviceError:
            # Not the version's fault (an optional part is missing): revert, but do not hold it against the version.
            self.slots.revert()
            raise
        tested = replace(filled, decision="confirmed", self_test_seconds=time.monotonic() - started)
        record = self.slots.confirm()
        self._confirmed(record, tested)
        return tested

    def _confirmed(self, record: SlotRecord, tested: UpdateResult) -> None:
        state = self.states.load().raised(record.version, record.tree_hash)
        self._report(record.offer_id, record.version, Outcome.CONFIRMED, tested, state=state)

    def _revert(self, record: SlotRecord, filled: UpdateResult, reason: str) -> UpdateResult:
        reverted = replace(filled, decision="reverted", to_version=record.version, reason=reason)
        failed = FailedVersion(version=record.version, tree_hash=record.tree_hash, reason=reason)
        # Remember first: after a crash between the two writes, `_recover` finishes the revert instead of trying again.
        self._report(
            record.offer_id, record.version, Outcome.REVERTED, reverted, state=self.states.load().with_failed(failed)
        )
        self.slots.revert()
        return reverted

    def _recover(self) -> UpdateResult | None:
        """Finish what an earlier process left: a slot in test, a confirmation nobody was told about, a lost counter."""
        state, pointer = self.states.load(), self.slots.pointer()
        self.slots.keep_counter(state.highest_version, state.highest_hash)
        if pointer.highest_version > state.highest_version:
            self.states.save(state.raised(pointer.highest_version, pointer.highest_hash))
        record = pointer.confirmed
        if record and record.offer_id != state.confirmed_offer_id:
            self._confirmed(record, UpdateResult(decision="confirmed", to_version=record.version))
        if pointer.test is None:
            return None
        record = pointer.test.record
        is_failed = any(
            (failed.version, failed.tree_hash) == (record.version, record.tree_hash) for failed in state.failed
        )
        if is_failed or self.slots.read(record) is None:
            self.slots.revert()
            return None
        found = UpdateResult(decision="up_to_date", from_version=self._active_version(), to_version=record.version)
        if pointer.test.boots >= MAX_BOOTS:
            return self._revert(record, found, f"the process ended during the self-test, {MAX_BOOTS} times")
        return self._test(found)

    # --- words

    def _active_version(self) -> int | None:
        active = self.slots.active()
        return active.manifest.version if active else None

    def _report(
        self, offer_id: str, version: int, outcome: Outcome, result: UpdateResult, *, state: DeviceState | None = None
    ) -> None:
        self.reporter.queue(
            OutcomeReport(
                offer_id=offer_id,
                version=version,
                outcome=outcome,
                reason=result.reason,
                bytes_downloaded=result.bytes_downloaded,
                apply_seconds=result.apply_seconds,
            ),
            state=state,
        )

    def _note(self, decision: str) -> None:
        self.states.save(self.states.load().with_decision(decision))
