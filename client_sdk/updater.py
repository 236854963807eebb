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

from client_sdk.download import Progress
from client_sdk.errors import (
    ConfigurationError,
    DeviceDiskError,
    DeviceError,
    MissingExtraError,
    PackageError,
    SelfTestError,
    ServiceRefusedError,
)
from client_sdk.health import HealthFacts
from client_sdk.lock import update_lock
from client_sdk.offers import OfferFinder, VerifiedOffer
from client_sdk.reports import Reporter, reason_of
from client_sdk.slot_filler import PostponedError, SlotFiller
from client_sdk.slots import MAX_BOOTS, SlotRecord, SlotStore, damaged_files
from client_sdk.state import FailedVersion, StateFile
from client_sdk.update_result import UpdateResult
from delta_updates import (
    Offer,
    Outcome,
    VersionManifest,
)

SelfTest = Callable[[Path, VersionManifest], HealthFacts | None]
"""Judges a version in test: raises `SelfTestError`, or returns what it measured."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Updater:
    """The steps, over the parts that do the work. Only one process at a time gets past `update_lock`."""

    home: Path
    states: StateFile
    slots: SlotStore
    finder: OfferFinder
    filler: SlotFiller
    reporter: Reporter
    self_test: SelfTest

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
            except PostponedError as waiting:
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
                return self._test(self.filler.fill(way, before, on_progress))
            except (PackageError, ServiceRefusedError, DeviceDiskError) as error:
                if way[-1].offer.package.source_version is None:
                    raise
                if isinstance(error, DeviceDiskError) and len(way) == 1:
                    raise  # a chain makes versions between, which the direct delta needs no room for
                kind = "chain of deltas" if len(way) > 1 else "delta"
                _logger.warning("the %s to v%d is of no use (%s): another way", kind, found.offer.version, error)
                before, last = replace(before, reason=reason_of(error)), error
        full = self.finder.find(only_full=True)
        if full is None:
            raise last
        return self._test(self.filler.fill((full,), before, on_progress))

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
        except (MissingExtraError, ConfigurationError) as error:
            # Not the version's fault, and another one would fare no better: it waits in its slot until that is mended.
            self.slots.count_boot(-1)
            self.reporter.queue_failure(in_test.record.offer_id, in_test.record.version, error)
            raise
        except DeviceError as error:
            # What is on this disk cannot be trusted; the version is not to blame.
            self.slots.revert()
            self.reporter.queue_failure(in_test.record.offer_id, in_test.record.version, error)
            raise
        tested = replace(filled, decision="confirmed", self_test_seconds=time.monotonic() - started, health=health)
        found = in_test.record
        self.reporter.queue_outcome(found.offer_id, found.version, Outcome.TESTED, tested)
        record = self.slots.confirm()
        self._confirmed(record, tested)
        return tested

    def _confirmed(self, record: SlotRecord, tested: UpdateResult) -> None:
        state = self.states.load().raised(record.version, record.tree_hash)
        self.reporter.queue_outcome(record.offer_id, record.version, Outcome.CONFIRMED, tested, state=state)

    def _revert(self, record: SlotRecord, filled: UpdateResult, reason: str) -> UpdateResult:
        reverted = replace(filled, decision="reverted", to_version=record.version, reason=reason)
        failed = FailedVersion(version=record.version, tree_hash=record.tree_hash, reason=reason)
        # Remember first: after a crash between the two writes, `_recover` finishes the revert instead of trying again.
        self.reporter.queue_outcome(
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

    def _note(self, decision: str) -> None:
        self.states.save(self.states.load().with_decision(decision))
