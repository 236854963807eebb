"""The bound finds the quantile from both sides, and its count of norms is paid for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from privacy.adaptive_clipping import AdaptiveClipping
from privacy.randomness import SeededRandom


def rule(**changes: Any) -> AdaptiveClipping:
    options: dict[str, Any] = {"quantile": 0.5, "step": 0.2, "bit_noise": 5.0, "expected_contributions": 100}
    return AdaptiveClipping(**(options | changes))


@pytest.mark.parametrize("start", [0.001, 0.3, 3.0, 500.0])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_it_reaches_the_quantile_from_both_sides(start: float, quantile: float) -> None:
    norms = np.random.default_rng(1).lognormal(mean=math.log(1.49), sigma=0.4, size=(200, 100))
    noise = SeededRandom(2).normals(200)
    bound, seen = start, []
    for these, unit in zip(norms, noise, strict=True):
        bound = rule(quantile=quantile).next_norm(bound, these, unit_noise=float(unit))
        seen.append(bound)
    assert np.median(seen[-50:]) == pytest.approx(np.quantile(norms, quantile), rel=0.06)


def test_missing_replies_do_not_move_it_to_the_median() -> None:
    assert rule().next_norm(2.0, [], unit_noise=0.0) == 2.0
    assert rule().next_norm(2.0, [1.0] * 10, unit_noise=0.0) < 2.0 < rule().next_norm(2.0, [3.0] * 10, unit_noise=0.0)


def test_it_stays_a_bound() -> None:
    assert 0 < rule(step=1e3).next_norm(1.0, [0.0] * 100, unit_noise=0.0) < 1.0
    assert rule(step=1e3).next_norm(1.0, [math.inf] * 100, unit_noise=0.0) < math.inf


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 8.0])
def test_sum_and_count_together_cost_what_was_promised(noise_multiplier: float) -> None:
    raised = rule().noise_multiplier_of_sum(noise_multiplier)
    assert raised > noise_multiplier
    # Both are Gaussian: their squared sensitivities over variances add up (a bit, centred, moves by 1/2).
    assert (1 / raised) ** 2 + (0.5 / 5.0) ** 2 == pytest.approx((1 / noise_multiplier) ** 2)


def test_a_count_with_too_little_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="must exceed 5"):
        rule(bit_noise=5.0).noise_multiplier_of_sum(10.0)
    assert rule().noise_multiplier_of_sum(0.0) == 0.0


@pytest.mark.parametrize(
    "wrong", [{"quantile": 0.0}, {"quantile": 1.0}, {"step": 0.0}, {"bit_noise": 0.0}, {"expected_contributions": 0}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"adaptive clipping|count of norms"):
        rule(**wrong)
