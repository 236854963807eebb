"""A rollout as it stands: which version, how far it has come, and why."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from server.rollouts.plan import RolloutPlan

RolloutState = Literal["draft", "running", "paused", "halted", "finished"]
_BITS = 48  # exact in a float


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One rollout of one version.

    Attributes:
        phase: Index into the plan's phases.
        phase_started_at: When the soak of this phase began; None before the start.
        phase_devices: Devices that came into the rollout's reach with this phase, counted as it began.
        reason: Why it is in this state.
        revision: Counts its changes; who changes it says which one they saw.
    """

    rollout_id: int
    model: str
    version: int
    plan: RolloutPlan
    state: RolloutState
    phase: int
    phase_started_at: datetime | None
    phase_devices: int
    reason: str
    revision: int
    created_at: datetime

    @property
    def percentage(self) -> float:
        """Share of its devices that this phase reaches, in percent."""
        return self.plan.phases[self.phase]

    @property
    def is_last_phase(self) -> bool:
        """Whether all devices are in reach."""
        return self.phase == len(self.plan.phases) - 1

    @property
    def name(self) -> str:
        """What people call it."""
        return f"rollout {self.rollout_id}"

    def reaches(self, device_id: str) -> bool:
        """Whether a device is among the percentage of this phase; it then is in every later one."""
        return position_of(self.rollout_id, device_id) < self.percentage


def position_of(rollout_id: int, device_id: str) -> float:
    """A device's place in the queue of a rollout, in [0, 100); another one in each rollout, always the same in one."""
    digest = hashlib.sha256(f"rollout {rollout_id} device {device_id}".encode()).digest()
    return int.from_bytes(digest[: _BITS // 8]) / (1 << _BITS) * 100
