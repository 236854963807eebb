"""Outcome reports: queued durably first, delivered when the service is there, never blocking an update."""

import logging

from client_sdk.device_config import ReportPolicy
from client_sdk.errors import DeviceDiskError, DeviceError, EnrolmentError, ReleaseDeclinedError, RetryLaterError
from client_sdk.quality import quality_of
from client_sdk.service import UpdateService
from client_sdk.state import DeviceState, StateFile
from client_sdk.update_result import UpdateResult
from delta_updates import Outcome, OutcomeReport

_MAX_REASON_CHARS = 500
_logger = logging.getLogger(__name__)


class Reporter:
    """The outbox of one device. Call it only while holding the update lock."""

    def __init__(self, states: StateFile, service: UpdateService, policy: ReportPolicy | None = None) -> None:
        self._states = states
        self._service = service
        self._policy = policy or ReportPolicy()

    def queue(self, report: OutcomeReport, *, state: DeviceState | None = None) -> None:
        """Queue a report durably, in one write with the changed `state` that it belongs to."""
        self._states.save((state or self._states.load()).with_report(report))

    def queue_outcome(
        self, offer_id: str, version: int, outcome: Outcome, result: UpdateResult, *, state: DeviceState | None = None
    ) -> None:
        """Queue how far an update came, as `queue` does."""
        report = OutcomeReport(
            offer_id=offer_id,
            version=version,
            outcome=outcome,
            reason=result.reason,
            bytes_downloaded=result.bytes_downloaded,
            apply_seconds=result.apply_seconds,
            # Once for each version: a second, differently noised answer would tell more than the owner agreed to.
            quality=quality_of(result.health, self._policy) if outcome is Outcome.CONFIRMED else None,
        )
        self.queue(report, state=state)

    def queue_failure(self, offer_id: str, version: int, error: DeviceError) -> None:
        """Queue that an offer could not be used, or that the owner's limit forbids it.

        The same, polled again and again, is queued once.
        """
        state = self._states.load()
        if state.last_decision == str(error)[:_MAX_REASON_CHARS]:
            return
        outcome = Outcome.DECLINED if isinstance(error, ReleaseDeclinedError) else Outcome.FAILED
        report = OutcomeReport(offer_id=offer_id, version=version, outcome=outcome, reason=reason_of(error))
        self._try_to_save(state.with_report(report).with_decision(str(error)))

    def deliver(self) -> None:
        """Send what is queued, oldest first; what the service refuses is dropped, what it cannot take now is kept.

        A decline waits until the service has said which words it has: told as a failure, it could stop a rollout.
        """
        try:
            state = self._states.load()
        except DeviceError:
            return
        waiting = [one for one in state.outbox if one.outcome is Outcome.DECLINED and not self._service.has_spoken]
        left = [one for one in state.outbox if one not in waiting]
        while left:
            try:
                self._service.report(left[0])
            except (RetryLaterError, EnrolmentError) as error:
                _logger.info("%d report(s) wait for the service: %s", len(left), error)
                break
            except DeviceError as error:
                # Kept, it would block every later report for ever.
                _logger.warning("the service refused a report (%s): dropped", error)
            del left[0]
        kept = tuple(one for one in state.outbox if one in waiting or one in left)
        if len(kept) != len(state.outbox):
            self._try_to_save(state.model_copy(update={"outbox": kept}))

    def _try_to_save(self, state: DeviceState) -> None:
        try:
            self._states.save(state)
        except DeviceDiskError as error:
            # The failure being reported matters more than the report; an unsaved delivery is delivered again.
            _logger.warning("the outbox could not be stored: %s", error)


def reason_of(error: Exception | str) -> str:
    """A reason as long as the service takes it."""
    return str(error)[:_MAX_REASON_CHARS]
