"""How a rollout changes: draft → running ⇄ paused, → finished or halted, which are for good."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from server.errors import ConflictError

if TYPE_CHECKING:
    from datetime import datetime

    from server.rollouts.rollout import Rollout, RolloutState

Action = Literal["start", "pause", "resume", "halt", "advance"]
ACTIONS: tuple[Action, ...] = get_args(Action)
_FROM: dict[Action, tuple[RolloutState, ...]] = {
    "start": ("draft",),
    "pause": ("running",),
    "resume": ("paused",),
    "halt": ("draft", "running", "paused"),
    "advance": ("running",),
}
_NEXT_STEP: dict[RolloutState, str] = {
    "draft": "Start it first: `lamella rollout start`.",
    "running": "It is running already.",
    "paused": "Resume it first: `lamella rollout resume`.",
    "halted": "A halt is for good. Release a better version, or make a new rollout if the halt was a mistake.",
    "finished": "Everybody it is for gets its version. Withdraw the version if it is bad: `lamella withdraw`.",
}


def change(rollout: Rollout, action: Action, *, now: datetime, reason: str) -> Rollout:
    """What an operator does to a rollout.

    Raises:
        ConflictError: Its state forbids this.
    """
    if rollout.state not in _FROM[action]:
        raise ConflictError(f"{rollout.name} is {rollout.state}: it cannot {action}. {_NEXT_STEP[rollout.state]}")
    if action == "pause":
        return replace(rollout, state="paused", reason=reason)
    if action == "halt":
        return halted(rollout, reason)
    if action == "advance":
        return advanced(rollout, now=now, reason=reason)
    # After a pause the soak begins anew: nobody has looked at the devices meanwhile.
    return replace(rollout, state="running", phase_started_at=_soak_begins(rollout, now), reason=reason)


def advanced(rollout: Rollout, *, now: datetime, reason: str) -> Rollout:
    """The rollout one phase on; finished after the last."""
    if rollout.is_last_phase:
        return replace(rollout, state="finished", reason=reason)
    return replace(rollout, phase=rollout.phase + 1, phase_started_at=_soak_begins(rollout, now), reason=reason)


def halted(rollout: Rollout, reason: str) -> Rollout:
    """The rollout, stopped for good."""
    return replace(rollout, state="halted", reason=reason)


def _soak_begins(rollout: Rollout, now: datetime) -> datetime:
    return max(now, rollout.plan.not_before or now)
