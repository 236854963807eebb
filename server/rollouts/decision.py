"""Why does this device get, or not get, this version? One pure function, for the service and for the operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from server.rollouts.plan import STABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from server.rollouts.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What the rules look at in a device; `reverted` are versions that failed their self-test on it."""

    device_id: str
    installed_version: int | None = None
    channel: str = STABLE
    group: str | None = None
    tags: frozenset[str] = frozenset()
    is_opted_out: bool = False
    forced_version: int | None = None
    reverted: frozenset[int] = frozenset()

    @property
    def channels(self) -> frozenset[str]:
        """Its own channel and the stable one: a beta device does not stay behind what everybody gets."""
        return frozenset({self.channel, STABLE})


@dataclass(frozen=True, kw_only=True)
class Release:
    """A version that was released, and whether it still is offered."""

    number: int
    state: Literal["released", "withdrawn"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Which version a device shall have, and why, in the order in which it was decided.

    Attributes:
        version: What it shall run: a newer version, what it has, or None when there is nothing to offer.
        is_move: Whether that is newer than what it has.
        rollout_id: The rollout that moves it.
        is_time_bound: Whether the answer may be another one later without anybody doing anything.
    """

    version: int | None
    is_move: bool
    reasons: tuple[str, ...]
    rollout_id: int | None = None
    is_time_bound: bool = False


@dataclass
class _Case:
    """One device being decided on; collects the reasons."""

    device: DeviceFacts
    releases: Mapping[int, Release]
    now: datetime
    reasons: list[str] = field(default_factory=list)

    def is_newer(self, version: int) -> bool:
        return self.device.installed_version is None or version > self.device.installed_version

    @property
    def withdrawn(self) -> Release | None:
        """What the device runs, when that was withdrawn."""
        current = self.releases.get(self.device.installed_version or 0)
        return current if current is not None and current.state == "withdrawn" else None

    def move(self, version: int, reason: str, rollout_id: int | None = None) -> Explanation:
        return Explanation(version=version, is_move=True, reasons=(*self.reasons, reason), rollout_id=rollout_id)

    def keep(self) -> Explanation:
        installed = self.device.installed_version
        if installed is None:
            self.reasons.append("It has nothing, and no version is for it yet.")
            return Explanation(version=None, is_move=False, reasons=tuple(self.reasons))
        self.reasons.append(f"It keeps v{installed}.")
        known = self.releases.get(installed)
        is_offered = known is not None and known.state == "released"
        return Explanation(version=installed if is_offered else None, is_move=False, reasons=tuple(self.reasons))


def decide(
    device: DeviceFacts, releases: Mapping[int, Release], rollouts: Iterable[Rollout], now: datetime
) -> Explanation:
    """Which version a device shall have: forced, then opted out, then the newest that a rollout gives it.

    Never a lower version than it has, none that was withdrawn, and none that it reverted.

    Args:
        device: The device.
        releases: By number: at least what the device has, what is forced on it, and the rollouts' versions.
        rollouts: Those of its model that may give it something, finished ones included.
        now: The time, for schedules and windows.
    """
    case = _Case(device, releases, now)
    if (withdrawn := case.withdrawn) is not None:
        case.reasons.append(f"v{withdrawn.number}, which it runs, was withdrawn: {withdrawn.reason}.")
    forced = device.forced_version
    if forced is not None and case.is_newer(forced):
        if (refusal := _refusal_of_release(case, forced)) is None:
            return case.move(forced, f"An operator forced v{forced} on it.")
        case.reasons.append(f"An operator forced v{forced} on it, but {refusal}.")
    if device.is_opted_out:
        case.reasons.append("It is opted out of rollouts: `lamella devices opt-in` brings it back.")
        return case.keep()
    newer = [rollout for rollout in rollouts if case.is_newer(rollout.version)]
    for rollout in sorted(newer, key=lambda one: (one.version, one.rollout_id), reverse=True):
        if (refusal := _refusal(case, rollout)) is None:
            return case.move(rollout.version, f"v{rollout.version}: {_why(case, rollout)}.", rollout.rollout_id)
        case.reasons.append(f"Not v{rollout.version}: {refusal}.")
    if not newer and device.installed_version is not None:
        case.reasons.append("No newer version is released for it.")
    if withdrawn is not None:
        case.reasons.append(
            "It waits for a newer release: versions never go down. `lamella rollout restore` makes one."
        )
    return case.keep()


def is_meant_for(rollout: Rollout, device: DeviceFacts) -> bool:
    """Whether a device is one that a rollout would move sooner or later, by its own rules alone."""
    is_newer = device.installed_version is None or rollout.version > device.installed_version
    return is_newer and not device.is_opted_out and _refusal_of_audience(device, rollout) is None


def _refusal(case: _Case, rollout: Rollout) -> str | None:
    """Why a rollout does not move a device; None when it does."""
    refusals = (
        _refusal_of_release(case, rollout.version),
        _refusal_of_audience(case.device, rollout),
        _refusal_of_state(rollout),
        _refusal_of_time(case, rollout),
        _refusal_of_percentage(case, rollout),
    )
    return next((refusal for refusal in refusals if refusal is not None), None)


def _refusal_of_release(case: _Case, version: int) -> str | None:
    release = case.releases.get(version)
    if release is None:
        return f"v{version} is not released"
    if release.state == "withdrawn":
        return f"v{version} was withdrawn: {release.reason}"
    if version in case.device.reverted:
        return f"v{version} failed its self-test on this device, which takes the next release instead"
    return None


def _refusal_of_audience(device: DeviceFacts, rollout: Rollout) -> str | None:
    plan = rollout.plan
    if plan.channel not in device.channels:
        return f"{rollout.name} is for channel {plan.channel}, and this device is on {device.channel}"
    if plan.groups and device.group not in plan.groups:
        where = f"in group {device.group}" if device.group else "in no group"
        return f"{rollout.name} is for group {' or '.join(plan.groups)}, and this device is {where}"
    if missing := sorted(set(plan.tags) - device.tags):
        return f"{rollout.name} is for devices with tag {', '.join(plan.tags)}, and this one lacks {', '.join(missing)}"
    return None


def _refusal_of_state(rollout: Rollout) -> str | None:
    if rollout.state in {"running", "finished"}:
        return None
    if rollout.state == "draft":
        return f"{rollout.name} has not been started"
    return f"{rollout.name} is {rollout.state}: {rollout.reason}"


def _refusal_of_time(case: _Case, rollout: Rollout) -> str | None:
    plan = rollout.plan
    if plan.not_before is not None and case.now < plan.not_before:
        return f"{rollout.name} begins at {plan.not_before:%Y-%m-%d %H:%M} UTC"
    # A device without anything has nothing that an update could disturb.
    if case.device.installed_version is not None and not plan.is_window_open(case.now):
        return f"{rollout.name} moves devices only between {plan.window} UTC"
    return None


def _refusal_of_percentage(case: _Case, rollout: Rollout) -> str | None:
    # What it runs was withdrawn: it does not wait for its turn.
    if case.withdrawn is not None or rollout.state == "finished" or rollout.reaches(case.device.device_id):
        return None
    return f"{rollout.name} is at {rollout.percentage:g}% of its devices, and this one comes later"


def _why(case: _Case, rollout: Rollout) -> str:
    if rollout.state == "finished":
        everybody = "everybody" if rollout.plan.is_for_everybody else "all of its group or tag"
        return f"{rollout.name} is finished, so {everybody} on channel {rollout.plan.channel} gets it"
    if case.withdrawn is not None:
        return f"{rollout.name} is running, and a device on a withdrawn version does not wait for its turn"
    return f"{rollout.name} is at {rollout.percentage:g}% of its devices, and this one is among them"
