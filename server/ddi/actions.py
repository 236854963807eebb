"""What a hawkBit client is told to do, from the rules that all devices have; and what its feedback means here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from delta_updates import Outcome, OutcomeReport, UpdateQuery
from server.errors import ConflictError, GoneError
from server.offers import choose_package, explain, known_hash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from server.ddi.documents import CancelFeedback, Feedback
    from server.registry import ActionRecord, DeviceRecord, FailedAttempt, PackageRecord, Registry
    from server.rollouts import Explanation

# hawkBit's clients try an action once. A full package that failed would be loaded again at every poll.
RETRY_AFTER: Final = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the next thing to do is: an action to carry out, or one to give up, or neither."""

    deploy: int | None = None
    cancel: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    explanation: Explanation
    package: PackageRecord | None


def next_step(registry: Registry, device: DeviceRecord, *, now: datetime) -> Step:
    """Decide what a device is told at a poll, and keep it.

    The same rules as for every other device say which version by which package. What it was told before and did not
    answer for stays while they say the same; otherwise the device is asked to give it up first.
    """
    action = registry.unfinished_action(device.device_id)
    if action is not None and action.state == "canceling":
        return Step(cancel=action.action_id)
    wanted = _wanted(registry, device, now=now)
    if action is None:
        return Step() if wanted.package is None else _begin(registry, device, wanted, wanted.package)
    is_same = wanted.package is not None and wanted.package.path == action.offer.package_path
    if is_same:
        if action.state == "refused":  # it went on with what is wanted again
            registry.move_action(device.device_id, action.action_id, "open")
        return Step(deploy=action.action_id)
    if wanted.package is None and (action.state == "refused" or _is_only_waiting(registry, action, now=now)):
        return Step()
    registry.move_action(device.device_id, action.action_id, "canceling")
    return Step(cancel=action.action_id)


def is_forced(registry: Registry, device: DeviceRecord, action: ActionRecord) -> bool:
    """Whether the client shall not ask its user: an operator forced the version, or what it runs was withdrawn."""
    offer = action.offer
    if offer.rollout_id is None or registry.device_policy(device.device_id).forced_version == offer.version:
        return True
    if device.installed_version is None:
        return False
    return registry.version(device.model, device.installed_version).state == "withdrawn"


def take_feedback(registry: Registry, device: DeviceRecord, action_id: int, feedback: Feedback) -> None:
    """Keep what a client says about an action; saying it again changes nothing.

    Raises:
        NotFoundError: The device has no such action.
        GoneError: The action is over, and ended in another way.
    """
    action, outcome = registry.action(device.device_id, action_id), outcome_of(feedback)
    if action.state == "closed":
        return _require_replay(registry, device, action, outcome)
    if feedback.status.execution == "canceled":
        return registry.move_action(device.device_id, action_id, "canceled")
    if outcome is None:
        return None
    offer = action.offer
    report = OutcomeReport(offer_id=offer.offer_id, version=offer.version, outcome=outcome, reason=feedback.reason)
    rollout_id = registry.record_outcome(device.device_id, report)
    if is_final(outcome):
        # After the report: a crash between the two leaves an action whose feedback is sent again.
        registry.move_action(device.device_id, action_id, "closed")
    if rollout_id is not None:
        registry.settle_rollout(rollout_id, is_urgent=outcome is not Outcome.CONFIRMED)
    return None


def take_cancel_feedback(registry: Registry, device: DeviceRecord, action_id: int, feedback: CancelFeedback) -> None:
    """Keep whether a client gave an action up.

    Raises:
        NotFoundError: The device has no such action.
        GoneError: It was not asked to give this one up.
    """
    action = registry.action(device.device_id, action_id)
    if action.state == "open":
        raise GoneError(f"Action {action_id} is not being canceled. Poll again.")
    state: Literal["refused", "canceled"] | None = None
    if feedback.is_refused:
        state = "refused"
    elif feedback.is_done:
        state = "canceled"
    if state is not None:
        registry.move_action(device.device_id, action_id, state)


def outcome_of(feedback: Feedback) -> Outcome | None:
    """What a feedback says in our words; None when it says nothing about how far the device came."""
    status = feedback.status
    if status.execution == "closed":
        return Outcome.FAILED if status.result.finished == "failure" else Outcome.CONFIRMED
    if status.execution == "downloaded":
        return Outcome.DOWNLOADED
    progress = status.result.progress
    if status.execution == "proceeding" and 0 < progress.of <= progress.cnt:
        return Outcome.APPLIED
    return None


def is_final(outcome: Outcome | None) -> bool:
    """Whether an action is over with it."""
    return outcome in {Outcome.CONFIRMED, Outcome.FAILED}


def choose_attempt(
    full: str | None, attempts: Sequence[FailedAttempt], *, now: datetime
) -> Literal["any", "full", "none"]:
    """Which package may be tried: after a delta that failed the full one; after that none, for a day.

    Args:
        full: Path of the full package.
        attempts: What this device failed at with this version, newest first.
        now: The time.
    """
    if not attempts:
        return "any"
    failed_full = [attempt.at for attempt in attempts if attempt.package_path == full]
    return "none" if failed_full and now - failed_full[0] < RETRY_AFTER else "full"


def _wanted(registry: Registry, device: DeviceRecord, *, now: datetime) -> _Wanted:
    explanation = explain(registry, device.device_id, installed_version=device.installed_version)
    if explanation.version is None:
        return _Wanted(explanation=explanation, package=None)
    version = registry.version(device.model, explanation.version)
    packages = registry.packages(device.model, version.number)
    attempts = registry.failed_attempts(device.device_id, model=device.model, version=version.number)
    full = next((package.path for package in packages if package.source_version is None), None)
    may = choose_attempt(full, attempts, now=now)
    query = UpdateQuery(
        model=device.model,
        installed_version=device.installed_version,
        installed_hash=device.installed_hash,
        only_full=may == "full",
    )
    installed_hash = known_hash(registry, query, latest=version)
    package = choose_package(query, latest=version, installed_hash=installed_hash, packages=packages)
    return _Wanted(explanation=explanation, package=None if may == "none" else package)


def _begin(registry: Registry, device: DeviceRecord, wanted: _Wanted, package: PackageRecord) -> Step:
    try:
        offer = registry.record_offer(
            device.device_id,
            model=device.model,
            version=package.version,
            package_path=package.path,
            rollout_id=wanted.explanation.rollout_id,
        )
    except ConflictError:
        return Step()  # its rollout was stopped just now
    return Step(deploy=registry.open_action(device.device_id, offer.offer_id).action_id)


def _is_only_waiting(registry: Registry, action: ActionRecord, *, now: datetime) -> bool:
    """Whether nothing is to be offered just now, and what was offered may go on: a closed window, a pause."""
    if registry.version(action.offer.model, action.offer.version).state != "released":
        return False
    if action.offer.rollout_id is None:
        return False
    rollout = registry.rollout(action.offer.rollout_id)
    return rollout.state == "paused" or (
        rollout.state in {"running", "finished"} and not rollout.plan.is_window_open(now)
    )


def _require_replay(registry: Registry, device: DeviceRecord, action: ActionRecord, outcome: Outcome | None) -> None:
    if not is_final(outcome):
        return  # a late word about a step on the way
    known = {
        report.outcome for report in registry.reports(device.device_id) if report.offer_id == action.offer.offer_id
    }
    if outcome is not None and outcome.value not in known:
        raise GoneError(f"Action {action.action_id} is over: {', '.join(sorted(known))}. Poll again.")
