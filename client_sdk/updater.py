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

from client_sdk.conditions import ConditionsSource, reason_to_wait
from client_sdk.device_config import DownloadPolicy
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
from client_sdk.health import HealthFacts
from client_sdk.lock import update_lock
from client_sdk.offers import OfferFinder, VerifiedOffer
from client_sdk.reports import Reporter, reason_of
from client_sdk.slots import MAX_BOOTS, ActiveVersion, SlotRecord, SlotStore, bytes_to_write, damaged_files
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

SelfTest = Callable[[Path, VersionManifest], HealthFacts | None]
"""Judges a version in test: raises `SelfTestError`, or returns what it measured."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one update did.

    Attributes:
        decision: `up_to_date`, `confirmed` (the new version serves), `reverted` (it failed its self-test), or
            `postponed` (this device's policy waits for better conditions).
        from_version, to_version: what served before, and what the update was about.
        package: kind of the package that was applied; a `chain` is several deltas in a row.
        package_bytes, bytes_downloaded: signed length of all that was applied, and what was transferred in this
            process.
        download_seconds, apply_seconds, self_test_seconds: wall time of the steps.
        reason: why it was reverted or postponed, or why a cheaper package gave way to another.
        health: what the self-test measured.
    """

    decision: Literal["up_to_date", "confirmed", "reverted", "postponed"]
    from_version: int | None = None
    to_version: int | None = None
    package: Literal["delta", "chain", "full"] | None = None
    package_bytes: int = 0
    bytes_downloaded: int = 0
    download_seconds: float = 0.0
    apply_seconds: float = 0.0
    self_test_seconds: float = 0.0
    reason: str = ""
    health: HealthFacts | None = None


class _PostponedError(Exception):
    """A download should wait; the message says for what."""


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
    policy: DownloadPolicy
    conditions: ConditionsSource

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
        return self._run(self._update, on_progress)

    def repair(self, *, on_progress: Progress) -> UpdateResult:
        """Hash what is installed, and where it is damaged bring a whole version in its place.

        Raises:
            DeviceDiskError: it is damaged, and the service has nothing to repair it with.
            DeviceError: see `errors.py`; the damaged version is left as it is.
        """
        return self._run(self._repair, on_progress)

    def _run(self, steps: Callable[[Progress], UpdateResult], on_progress: Progress) -> UpdateResult:
        with update_lock(self.home):
            try:
                result = steps(on_progress)
            except _PostponedError as waiting:
                version = self._active_version()
                result = UpdateResult(decision="postponed", from_version=version, reason=str(waiting))
            except DeviceError as error:
                with contextlib.suppress(DeviceError):
                    self._note(str(error))
                raise
            finally:
                self.reporter.deliver()
            shown = f"v{result.to_version}" if result.to_version else result.reason or "nothing is offered yet"
            self._note(f"{result.decision} {shown}" if result.to_version or result.reason else shown)
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

    def _repair(self, on_progress: Progress) -> UpdateResult:
        self._recover()
        active = self.slots.active()
        damaged = damaged_files(active) if active else ()
        if active and not damaged:
            return UpdateResult(
                decision="up_to_date", from_version=active.manifest.version, to_version=active.manifest.version
            )
        found = self.finder.find(is_damaged=True)
        if found is None:
            raise DeviceDiskError(
                f"{', '.join(damaged) or 'The installed version'} is damaged on this disk, and the service offers "
                "nothing to repair it with. Tell the operator."
            )
        _logger.warning("%s of the installed version is damaged: repairing", ", ".join(damaged) or "all")
        return self._install(found, on_progress)

    # --- download and apply

    def _install(self, found: VerifiedOffer, on_progress: Progress) -> UpdateResult:
        """Fill the free slot by the cheapest way that works: chain of deltas, delta, full package. Then test it."""
        before = UpdateResult(decision="up_to_date", from_version=self._active_version())
        ways = [found.chain, (found,)] if found.chain else [(found,)]
        for way in ways:
            try:
                return self._test(self._fill_slot(way, before, on_progress))
            except (PackageError, ServiceRefusedError) as error:
                if way[-1].offer.package.source_version is None:
                    raise
                kind = "chain of deltas" if len(way) > 1 else "delta"
                _logger.warning("the %s to v%d is of no use (%s): another way", kind, found.offer.version, error)
                before, last = replace(before, reason=reason_of(error)), error
        full = self.finder.find(only_full=True)
        if full is None:
            raise last
        return self._test(self._fill_slot((full,), before, on_progress))

    def _fill_slot(self, way: tuple[VerifiedOffer, ...], before: UpdateResult, on_progress: Progress) -> UpdateResult:
        """Download and apply into the free slot, and name it *test*; returns what was measured."""
        offer = way[-1].offer
        source = self.slots.active() if way[0].offer.package.source_version is not None else None
        try:
            slot, tree = self.slots.prepare()
            packages, filled = self._download(way, source, before, on_progress)
            for step, package in zip(way, packages, strict=True):
                target = tree if step is way[-1] else tree.with_name(f"v{step.offer.version}")
                applied = self._apply(package, source, step.manifest, target)
                filled = replace(filled, apply_seconds=filled.apply_seconds + applied.seconds)
                source = ActiveVersion(target, step.manifest)
            self.slots.begin_test(slot, way[-1].manifest, offer.offer_id)
        except (RefusedError, DeviceDiskError) as error:
            self.reporter.queue_failure(offer, error)
            raise
        self._report(offer.offer_id, offer.version, Outcome.APPLIED, filled)
        with disk_errors(self.home, "removing the applied packages"):
            for step, package in zip(way, packages, strict=True):
                self.disk.remove(package)
                if step is not way[-1]:
                    self.disk.remove(tree.with_name(f"v{step.offer.version}"))
        return filled

    def _download(
        self,
        way: tuple[VerifiedOffer, ...],
        source: ActiveVersion | None,
        before: UpdateResult,
        on_progress: Progress,
    ) -> tuple[list[Path], UpdateResult]:
        """Fetch every package of a way, after asking whether this is the time and the disk for it."""
        offer = way[-1].offer
        refs = [step.offer.package for step in way]
        length = sum(ref.length for ref in refs)
        self._make_ready(way, source, length)
        kind: Literal["delta", "chain", "full"] = "full" if refs[0].source_version is None else "delta"
        started, done = time.monotonic(), 0
        filled = replace(
            before, to_version=offer.version, package="chain" if len(way) > 1 else kind, package_bytes=length
        )
        packages, transferred = [], before.bytes_downloaded
        for ref in refs:
            package = self.home / "downloads" / ref.sha256
            transferred += self.fetcher.fetch(
                ref.path,
                package,
                length=ref.length,
                sha256=ref.sha256,
                on_progress=_shifted(on_progress, done, length),
            )
            packages.append(package)
            done += ref.length
        filled = replace(
            filled,
            bytes_downloaded=transferred,
            download_seconds=before.download_seconds + time.monotonic() - started,
        )
        self._report(offer.offer_id, offer.version, Outcome.DOWNLOADED, filled)
        return packages, filled

    def _make_ready(self, way: tuple[VerifiedOffer, ...], source: ActiveVersion | None, length: int) -> None:
        """Remove what is left of other downloads, and refuse what has no room here, before the first byte.

        Raises:
            DeviceDiskError: there is no room.
            _PostponedError: this is not the time.
        """
        folder = self.home / "downloads"
        wanted = tuple(step.offer.package.sha256 for step in way)
        with disk_errors(self.home, "preparing the download"):
            make_private_folder(folder)
            for other in folder.iterdir():
                if not other.name.startswith(wanted):
                    self.disk.remove(other)
            missing = max(0, length - sum(path.stat().st_size for path in folder.iterdir()))
            free = self.disk.free_bytes(self.home)
        if waiting := reason_to_wait(self.policy, self.conditions(), package_bytes=missing):
            raise _PostponedError(f"v{way[-1].offer.version} waits: {waiting}")
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
            health = self.self_test(version.tree, version.manifest)
        except SelfTestError as error:
            return self._revert(in_test.record, filled, reason_of(error))
        except (KeyboardInterrupt, SystemExit):
            self.slots.count_boot(-1)
            raise
        except DeviceError:
            # Not the version's fault (an optional part is missing): revert, but do not hold it against the version.
            self.slots.revert()
            raise
        tested = replace(filled, decision="confirmed", self_test_seconds=time.monotonic() - started, health=health)
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


def _shifted(on_progress: Progress, done: int, length: int) -> Progress:
    """Progress of one package of several: `done` bytes of `length` lie before it."""
    return lambda here, _length: on_progress(done + here, length)
