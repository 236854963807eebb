"""A hundred thousand devices on a fake clock, moved by the real rules of rollouts.

Devices ask once an hour, each at its own minute; one in ten sleeps and asks once in three days. Who is offered a
version, is computed for the whole fleet at once with numpy; a sample of each hour is put to `decide` as well, which
must agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from server.rollouts import (
    Counts,
    DeviceFacts,
    Health,
    Launch,
    Measured,
    Release,
    Rollout,
    advance,
    apply,
    change,
    decide,
    position_of,
)

START = datetime(2026, 3, 1, tzinfo=UTC)
_HOUR, _SLEEPS = 60, 3 * 24 * 60  # minutes
_WAITING, _WORKING, _CONFIRMED, _REVERTED, _FAILED = range(5)
_SAMPLE = 20


@dataclass(frozen=True, kw_only=True)
class Version:
    """What a new version does to devices.

    Attributes:
        reverts: share of devices on which its self-test fails.
        breaks: share of downloads and installations that fail once; they are tried again at the next check.
        minutes: from the offer to the report.
        tokens_per_second: mean of what devices measure.
    """

    reverts: float = 0.0
    breaks: float = 0.002
    minutes: int = 15
    tokens_per_second: float = 12.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """How it went: the rollout at the end, minutes until then, and devices by what they met."""

    rollout: Rollout
    minutes: int
    offered: int
    confirmed: int
    reverted: int
    share_by_hour: tuple[float, ...]


def simulate(version: Version, launch: Launch, *, devices: int = 100_000, days: int = 7, seed: int = 0) -> Result:
    """Roll one version out, minute by minute, until it is finished and awake devices have it, or it has halted."""
    fleet = _Fleet(version, launch, devices, seed)
    shares = []
    for minute in range(days * 24 * 60):
        fleet.tick(minute)
        if minute % _HOUR == 0:
            shares.append(float(np.mean(fleet.status == _CONFIRMED)))
        if fleet.is_over():
            break
    return Result(
        rollout=fleet.rollout,
        minutes=minute,
        offered=int(np.sum(fleet.phase >= 0)),
        confirmed=int(np.sum(fleet.status == _CONFIRMED)),
        reverted=int(np.sum(fleet.status == _REVERTED)),
        share_by_hour=tuple(shares),
    )


class _Fleet:
    def __init__(self, version: Version, launch: Launch, devices: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.version = version
        self.names = [f"device-{number}" for number in range(devices)]
        draft = Rollout(
            rollout_id=1,
            model="tiny",
            version=2,
            plan=launch.plan,
            state="draft",
            phase=0,
            phase_started_at=None,
            phase_devices=0,
            reason="",
            revision=1,
            created_at=START,
        )
        self.position = np.array([position_of(draft.rollout_id, name) for name in self.names])
        self.period = np.where(self.rng.random(devices) < 0.1, _SLEEPS, _HOUR)
        self.offset = self.rng.integers(0, self.period)
        self.is_bad = self.rng.random(devices) < version.reverts
        self.status = np.full(devices, _WAITING)
        self.phase = np.full(devices, -1)
        self.due = np.zeros(devices, dtype=np.int64)
        self.speed = np.zeros(devices)
        started = change(draft, "start", now=START, reason="started")
        self.rollout = self._counted(replace(started, state=launch.state))

    def tick(self, minute: int) -> None:
        """One minute: reports come in, the rollout follows from them, devices ask."""
        now = START + timedelta(minutes=minute)
        self._report(minute)
        before = self.rollout
        after = apply(before, advance(before, self._health(), now), now=now)
        self.rollout = self._counted(after) if after.phase != before.phase else after
        asks = (minute - self.offset) % self.period == 0
        gets = asks & self._reached() & np.isin(self.status, (_WAITING, _FAILED))
        if minute % _HOUR == 0:
            self._require_the_rules_agree(np.flatnonzero(asks), gets, now)
        self.phase[gets & (self.phase < 0)] = self.rollout.phase
        self.status[gets] = _WORKING
        self.due[gets] = minute + self.version.minutes

    def is_over(self) -> bool:
        """Nothing more will happen, but for devices that sleep."""
        awake = self.period == _HOUR
        if np.any(awake & (self.status == _WORKING)):
            return False
        is_done = not np.any(awake & np.isin(self.status, (_WAITING, _FAILED)))
        return self.rollout.state == "halted" or (self.rollout.state == "finished" and is_done)

    def _reached(self) -> np.ndarray:
        if self.rollout.state not in {"running", "finished"}:
            return np.zeros(len(self.names), dtype=bool)
        return self.position < self.rollout.percentage

    def _report(self, minute: int) -> None:
        ready = np.flatnonzero((self.status == _WORKING) & (self.due <= minute))
        breaks = self.rng.random(len(ready)) < self.version.breaks
        self.status[ready] = np.where(breaks, _FAILED, np.where(self.is_bad[ready], _REVERTED, _CONFIRMED))
        self.speed[ready] = self.rng.normal(self.version.tokens_per_second, 3.0, len(ready))

    def _health(self) -> Health:
        confirmed = self.status == _CONFIRMED
        speeds = self.speed[confirmed]
        quality = {}
        if len(speeds) > 1:
            error = float(speeds.std(ddof=1)) / len(speeds) ** 0.5
            quality["tokens_per_second"] = Measured(
                mean=float(speeds.mean()), devices=len(speeds), standard_error=error
            )
        return Health(
            phase=self._counts(self.phase == self.rollout.phase), total=self._counts(self.phase >= 0), quality=quality
        )

    def _counts(self, among: np.ndarray) -> Counts:
        statuses = np.bincount(self.status[among], minlength=5)
        return Counts(
            offered=int(statuses.sum()),
            confirmed=int(statuses[_CONFIRMED]),
            reverted=int(statuses[_REVERTED]),
            failed=int(statuses[_FAILED]),
        )

    def _counted(self, rollout: Rollout) -> Rollout:
        below = rollout.plan.phases[rollout.phase - 1] if rollout.phase else 0.0
        among = (self.position >= below) & (self.position < rollout.percentage)
        return replace(rollout, phase_devices=int(among.sum()))

    def _require_the_rules_agree(self, asking: np.ndarray, gets: np.ndarray, now: datetime) -> None:
        releases = {number: Release(number=number, state="released") for number in (1, 2)}
        for number in self.rng.choice(asking, min(_SAMPLE, len(asking)), replace=False):
            status = self.status[number]
            facts = DeviceFacts(
                device_id=self.names[number],
                installed_version=2 if status == _CONFIRMED else 1,
                reverted=frozenset({2} if status == _REVERTED else ()),
            )
            is_moved = decide(facts, releases, [self.rollout], now).is_move
            # A device that is at work asks for nothing new.
            assert status == _WORKING or is_moved == bool(gets[number])
