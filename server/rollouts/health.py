"""What devices reported about a rollout, and what follows from it: go on, stay, or halt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from server.rollouts.transitions import advanced, halted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from server.rollouts.plan import Metric
    from server.rollouts.rollout import Rollout


_STANDARD_ERRORS: Final = 2.0
"""A mean crosses a limit when chance alone would put it there less than once in forty times."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Devices by how far they came; each is counted once, by what it reported last.

    One that declined keeps its version because its owner wants no such release: that says nothing about the release's
    health, so it is no report, and nobody waits for its report.
    """

    offered: int = 0
    confirmed: int = 0
    reverted: int = 0
    failed: int = 0
    declined: int = 0

    @property
    def reports(self) -> int:
        """Devices that reported how it ended."""
        return self.confirmed + self.failures

    @property
    def failures(self) -> int:
        """Devices that did not take the version, or went back from it."""
        return self.reverted + self.failed

    @property
    def success_share(self) -> float:
        """Share of the reports that confirmed; 1 when there are none."""
        return self.confirmed / self.reports if self.reports else 1.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The mean of a metric over the devices that sent it, and how far it may be off.

    The standard error is taken from what was sent, so it knows of the noise that devices add to what is personal.
    """

    mean: float
    devices: int
    standard_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Health:
    """Reports of the devices that came with the current phase, of all devices so far, and what they measured."""

    phase: Counts = Counts()
    total: Counts = Counts()
    quality: Mapping[Metric, Measured] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a rollout does next, and why."""

    action: Literal["stay", "advance", "finish", "halt"]
    reason: str


def advance(rollout: Rollout, health: Health, now: datetime) -> Decision:
    """What the reports say: halt, go on, or stay.

    Halting needs no soak and no minimum: reports that are still missing to the minimum count as good ones, so that the
    first failures halt it once nothing could make up for them. Going on never follows from silence.
    """
    if rollout.state not in {"running", "paused"}:
        return Decision(action="stay", reason=rollout.reason)
    if (bad := _what_is_bad(rollout, health)) is not None:
        return Decision(action="halt", reason=bad)
    if rollout.state == "paused":
        return Decision(action="stay", reason=rollout.reason)
    if (missing := _what_is_missing(rollout, health, now)) is not None:
        return Decision(action="stay", reason=missing)
    done = f"phase {rollout.phase + 1} ({rollout.percentage:g}%): {_successes(rollout, health)}"
    return Decision(action="finish" if rollout.is_last_phase else "advance", reason=done)


def apply(rollout: Rollout, decision: Decision, *, now: datetime) -> Rollout:
    """The rollout after a decision; itself when it stays."""
    if decision.action == "stay":
        return rollout
    if decision.action == "halt":
        return halted(rollout, decision.reason)
    return advanced(rollout, now=now, reason=decision.reason)


def required_reports(rollout: Rollout, health: Health) -> int:
    """Reports that the current phase needs before it can go on: one at least, though all of its devices decline."""
    may_come = max(rollout.phase_devices - health.phase.declined, min(rollout.phase_devices, 1))
    return min(rollout.plan.min_reports, may_come)


def _what_is_bad(rollout: Rollout, health: Health) -> str | None:
    plan = rollout.plan
    # Also over all phases: devices of an earlier one may go back late.
    for what, counts in (("this phase", health.phase), ("all phases", health.total)):
        # With one report at least, so that a phase of three devices can halt as well.
        may_come = max(counts.offered, rollout.phase_devices) - counts.declined
        reports = max(counts.reports, min(plan.min_reports, may_come), 1)
        if counts.failures and counts.failures / reports >= plan.failure_threshold:
            return (
                f"{counts.failures} of {reports} devices of {what} failed ({counts.reverted} reverted, {counts.failed} "
                f"could not install it); it halts at {plan.failure_threshold:.1%}"
            )
    for limit in plan.quality:
        measured = health.quality.get(limit.metric)
        # A handful of devices says little about a mean, however few the phase has.
        if measured is None or measured.devices < min(plan.min_reports, max(health.total.offered, 1)):
            continue
        if limit.is_crossed_by(measured.mean, margin=_STANDARD_ERRORS * measured.standard_error):
            bound = "at least" if limit.metric == "tokens_per_second" else "at most"
            return (
                f"the mean {limit.metric} of {measured.devices} devices is {measured.mean:.4g} "
                f"(± {measured.standard_error:.2g}); {bound} {limit.limit:g} was asked for"
            )
    return None


def _what_is_missing(rollout: Rollout, health: Health, now: datetime) -> str | None:
    plan, counts, required = rollout.plan, health.phase, required_reports(rollout, health)
    if not plan.is_automatic:
        return "it goes on by hand: `lamella rollout advance`"
    started = rollout.phase_started_at or now
    if now < started + plan.soak:
        return (
            f"phase {rollout.phase + 1} ({rollout.percentage:g}%) soaks until {started + plan.soak:%Y-%m-%d %H:%M} UTC"
        )
    if counts.reports < required:
        declined = f"; {counts.declined} declined by their owners' limits" if counts.declined else ""
        return f"{counts.reports} of {required} reports that phase {rollout.phase + 1} needs have come{declined}"
    if counts.success_share < plan.success_threshold:
        return (
            f"{counts.success_share:.1%} of {counts.reports} devices succeeded, which is too few to go on "
            f"({plan.success_threshold:.1%}) and enough not to halt. Look at them, then advance or halt"
        )
    return None


def _successes(rollout: Rollout, health: Health) -> str:
    if rollout.phase_devices == 0 and health.phase.reports == 0:
        return "it has no device"
    return f"{health.phase.success_share:.1%} of {health.phase.reports} devices succeeded"
