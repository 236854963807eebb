"""Would the next event overspend?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.accountant import epsilon
from privacy.errors import BudgetExceededError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.event import PrivacyEvent


@dataclass(frozen=True, kw_only=True)
class PrivacyBudget:
    """The most that may ever be spent on one privacy unit: ε at most `target_epsilon` at `target_delta`."""

    target_epsilon: float
    target_delta: float

    def __post_init__(self) -> None:
        if not (0 < self.target_epsilon < math.inf and 0 < self.target_delta < 1):
            raise ValueError(
                "a budget needs 0 < epsilon < infinity and 0 < delta < 1, "
                f"not {self.target_epsilon} and {self.target_delta}"
            )


def require_affordable(budget: PrivacyBudget, spent: Sequence[PrivacyEvent], event: PrivacyEvent) -> float:
    """ε after `event`, when the budget allows it. Ask before training: what has run is spent.

    `spent` is everything recorded about the same examples, under whatever device name and in whatever run.

    Raises:
        BudgetExceededError: `event` would bring ε above the budget.
        UnknownEventError: an event cannot be accounted for.
    """
    after = epsilon([*spent, event], target_delta=budget.target_delta)
    if after > budget.target_epsilon:
        before = epsilon(spent, target_delta=budget.target_delta)
        raise BudgetExceededError(
            f"round {event.server_round} of run {event.run_id} would bring epsilon from {before:.3f} to {after:.3f}, "
            f"above its budget of {budget.target_epsilon:g} at delta {budget.target_delta:g};"
            " this device sits the round out"
        )
    return after
