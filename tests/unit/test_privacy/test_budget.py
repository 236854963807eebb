"""The budget refuses before it is overspent."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from privacy import BudgetExceededError, PrivacyEvent
from privacy.budget import PrivacyBudget, require_affordable
from privacy.calibration import noise_multiplier_for

BUDGET = PrivacyBudget(target_epsilon=4.0, target_delta=1e-5)


def make_event(server_round: int, noise_multiplier: float, device_id: str = "device-1") -> PrivacyEvent:
    return PrivacyEvent(
        run_id="run-1",
        server_round=server_round,
        device_id=device_id,
        noise_multiplier=noise_multiplier,
        sampling_probability=0.1,
        steps=10,
        clipping_norm=1.0,
        target_delta=1e-5,
        recorded_at=datetime(2026, 3, 1, tzinfo=UTC),
    )


def test_a_calibrated_run_lasts_exactly_as_long_as_planned() -> None:
    sigma = noise_multiplier_for(target_epsilon=4.0, target_delta=1e-5, sampling_probability=0.1, steps=50)
    spent: list[PrivacyEvent] = []
    costs = []
    for server_round in range(1, 6):
        event = make_event(server_round, sigma)
        costs.append(require_affordable(BUDGET, spent, event))
        spent.append(event)
    assert costs == sorted(costs)
    assert 3.9 < costs[-1] <= 4.0
    with pytest.raises(BudgetExceededError, match=r"from 3\.9\d+ to 4\.\d+, above its budget of 4 at delta 1e-05"):
        require_affordable(BUDGET, spent, make_event(6, sigma))


def test_a_new_device_name_does_not_forget_what_was_spent() -> None:
    sigma = noise_multiplier_for(target_epsilon=4.0, target_delta=1e-5, sampling_probability=0.1, steps=10)
    with pytest.raises(BudgetExceededError):
        require_affordable(BUDGET, [make_event(1, sigma, "before")], make_event(2, sigma, "after"))


def test_no_noise_fits_no_budget() -> None:
    with pytest.raises(BudgetExceededError, match="to inf"):
        require_affordable(BUDGET, [], make_event(1, 0.0))


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (math.inf, 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_a_budget_is_finite(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="a budget needs"):
        PrivacyBudget(target_epsilon=epsilon, target_delta=delta)
