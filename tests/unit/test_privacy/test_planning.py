"""Plans: a budget is met with the least noise, and every change that is named makes a plan fit."""

from dataclasses import asdict, replace

import pytest

from privacy.errors import CalibrationError
from privacy.planning import Training, alternatives, plan_for_budget, plan_with_noise

DELTA = 1e-5
TRAINING = Training(examples=200, batch_size=8, steps=4, rounds=30)


@pytest.mark.slow
def test_a_budget_is_met_and_hardly_more() -> None:
    plan = plan_for_budget(TRAINING, target_epsilon=8, target_delta=DELTA)
    assert 7.9 < plan.epsilon <= 8
    assert list(plan.epsilon_after) == sorted(plan.epsilon_after)
    assert len(plan.epsilon_after) == 30


@pytest.mark.slow
def test_every_change_that_is_named_is_the_smallest_that_fits() -> None:
    plan = plan_with_noise(TRAINING, noise_multiplier=0.7, target_delta=DELTA)
    assert plan.epsilon > 4
    changes = alternatives(plan, target_epsilon=4)

    def cost(**changed: int) -> float:
        return plan_with_noise(replace(TRAINING, **changed), noise_multiplier=0.7, target_delta=DELTA).epsilon

    assert plan_with_noise(TRAINING, noise_multiplier=changes.noise_multiplier, target_delta=DELTA).epsilon <= 4
    assert cost(rounds=changes.rounds) <= 4 < cost(rounds=changes.rounds + 1)
    assert cost(batch_size=changes.batch_size) <= 4 < cost(batch_size=changes.batch_size + 1)
    assert cost(examples=changes.examples) <= 4 < cost(examples=changes.examples - 1)


@pytest.mark.slow
def test_where_nothing_but_noise_helps_nothing_else_is_named() -> None:
    plan = plan_with_noise(replace(TRAINING, rounds=3), noise_multiplier=0.3, target_delta=DELTA)
    changes = asdict(alternatives(plan, target_epsilon=0.5))
    assert changes.pop("noise_multiplier") > 1
    assert set(changes.values()) == {None}


def test_a_training_without_anything_is_refused() -> None:
    with pytest.raises(CalibrationError, match="at least 1"):
        Training(examples=0, batch_size=8, steps=4, rounds=1)
