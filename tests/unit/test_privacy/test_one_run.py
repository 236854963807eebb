"""One-run lower bounds: right as often as they say, larger for worse mechanisms, never above what was proved."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accountant import epsilon_of_steps
from privacy.audits.finding import clopper_pearson
from privacy.audits.one_run import (
    Guesses,
    epsilon_of_mu,
    most_that_can_be_shown,
    one_run_bounds,
    one_run_epsilon,
    one_run_epsilon_if_gaussian,
)
from privacy.errors import AuditError

DELTA = 1e-5


def gaussian_scores(mu: float, canaries: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    is_in = random.random(canaries) < 0.5
    return random.standard_normal(canaries) + mu * is_in, is_in


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_the_gaussian_conversion_agrees_with_the_accountant(mu: float) -> None:
    proved = epsilon_of_steps(noise_multiplier=1 / mu, sampling_probability=1.0, steps=1, target_delta=DELTA)
    assert epsilon_of_mu(mu, DELTA) == pytest.approx(proved, rel=5e-3)


@pytest.mark.slow
def test_bounds_hold_at_least_as_often_as_they_say() -> None:
    random, runs, above = np.random.default_rng(0), 60, {"any": 0, "gaussian": 0}
    for _ in range(runs):
        bounds = one_run_bounds(*gaussian_scores(1.0, 400, random), target_delta=DELTA)
        above["any"] += bounds.any_mechanism > epsilon_of_mu(1.0, DELTA)
        above["gaussian"] += bounds.if_gaussian > epsilon_of_mu(1.0, DELTA)
    assert all(clopper_pearson(hits, runs)[0] <= 0.05 for hits in above.values())


def test_nothing_is_shown_of_a_mechanism_that_gives_nothing_away() -> None:
    random = np.random.default_rng(1)
    shown = [one_run_bounds(*gaussian_scores(0.0, 400, random), target_delta=DELTA).largest for _ in range(40)]
    assert sum(bound > 0 for bound in shown) <= 6


def test_worse_mechanisms_show_more() -> None:
    random = np.random.default_rng(2)
    shown = [one_run_bounds(*gaussian_scores(mu, 4000, random), target_delta=DELTA) for mu in (0.5, 1.0, 2.0, 8.0)]
    assert [s.any_mechanism for s in shown] == sorted(s.any_mechanism for s in shown)
    assert all(s.if_gaussian >= s.any_mechanism for s in shown)
    assert shown[1].any_mechanism > 1.5


def test_every_guess_right_shows_the_most() -> None:
    scores = np.concatenate([np.zeros(500), np.ones(500)])
    bounds = one_run_bounds(scores, scores > 0, target_delta=DELTA)
    assert bounds.any_mechanism == pytest.approx(most_that_can_be_shown(1000, target_delta=DELTA))


def test_the_bound_for_pure_privacy_is_the_binomial_one() -> None:
    # With δ = 0: the ε at which 90 of 100 coins of bias sigmoid(ε) have probability 5%.
    found = one_run_epsilon(Guesses(100, 100, 90), target_delta=0.0, error=0.05)
    rate = 1 / (1 + math.exp(-found))
    assert stats.binom.sf(89, 100, rate) == pytest.approx(0.05, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 300), st.data())
def test_more_right_guesses_never_show_less(guessed: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, guessed - 1))
    canaries = data.draw(st.integers(guessed, 1000))
    for bound in (one_run_epsilon, one_run_epsilon_if_gaussian):
        fewer = bound(Guesses(canaries, guessed, correct), target_delta=DELTA, error=0.05)
        more = bound(Guesses(canaries, guessed, correct + 1), target_delta=DELTA, error=0.05)
        assert 0 <= fewer <= more + 1e-3


def test_scores_that_make_no_sense_are_refused() -> None:
    with pytest.raises(AuditError, match="finite"):
        one_run_bounds(np.array([1.0, np.nan]), np.array([True, False]), target_delta=DELTA)
    with pytest.raises(AuditError, match="canaries"):
        one_run_bounds(np.array([]), np.array([], dtype=np.bool_), target_delta=DELTA)
