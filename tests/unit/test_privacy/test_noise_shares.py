"""Noise in shares: how large they are, that no sum wraps around, and what they cost in all."""

from __future__ import annotations

import math
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from simulators.share_events import RULE
from simulators.share_events import event_in_shares as event

from privacy import BudgetExceededError, CalibrationError, PrivacyEvent, UnknownEventError
from privacy.accountant import epsilon_of_steps
from privacy.budget import PrivacyBudget
from privacy.noise_shares import NoiseShares, ShareRule
from privacy.randomness import SeededRandom
from privacy.renyi import SkellamSums, epsilon_of_charges, gaussian_rdp
from privacy.secure_aggregation.quantization import Quantization, wrapped
from privacy.skellam import skellam_noise, skellam_rdp
from privacy.user_budget import UserPlan, can_afford, require_users_affordable, user_noise_for
from privacy.user_level import UserBills, user_epsilon

DELTA = 1e-5


def sums(shares: NoiseShares, count: int = 1) -> SkellamSums:
    return SkellamSums(shares.l2, shares.l1, shares.variance, count)


def test_silent_and_colluding_devices_are_not_counted_on() -> None:
    shares = RULE.shares(2.0)
    assert (shares.counted, shares.colluding, shares.fewest) == (15, 1, 16)
    assert shares.variance == (2.0 * shares.levels) ** 2
    assert shares.share_variance * 15 == pytest.approx(shares.variance)
    none_left = ShareRule(cohort=3, dropouts=0.4, colluding=0.4, length=10)
    with pytest.raises(CalibrationError, match="larger cohort"):
        none_left.shares(1.0)


rules = st.builds(
    ShareRule,
    cohort=st.integers(3, 10_000),
    dropouts=st.floats(0, 0.49),
    colluding=st.floats(0, 0.49),
    length=st.integers(1, 1 << 28),
)


@given(rules, st.floats(1e-3, 1e6))
@example(ShareRule(cohort=3, dropouts=0.0, colluding=0.0, length=2_400_000), 1e5)
def test_whatever_is_asked_the_promise_is_kept_or_refused(rule: ShareRule, noise: float) -> None:
    try:
        shares = rule.shares(noise)
    except CalibrationError:
        return
    assert shares.noise_multiplier == pytest.approx(noise)
    silent = math.floor(rule.dropouts * rule.cohort + 1e-9)
    assert rule.cohort - silent == shares.fewest  # with the allowed dropouts a sum is still unmasked
    assert shares.colluding >= rule.colluding * rule.cohort - 1e-6
    # Every device at its bound in the same direction, and noise twelve deviations out, and the sum does not wrap.
    assert rule.cohort * shares.l2 + 12 * math.sqrt(rule.cohort * shares.share_variance) < 2**31
    assert NoiseShares.model_validate_json(shares.model_dump_json()) == shares


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 40), st.integers(1, 200), st.floats(0.05, 200), st.integers(0, 1000))
def test_the_sum_of_noised_and_wrapped_vectors_is_their_sum(cohort: int, length: int, noise: float, seed: int) -> None:
    random = SeededRandom(seed)
    shares = ShareRule(cohort=cohort, dropouts=0.1, colluding=0.0, length=length).shares(noise)
    form = Quantization(clipping_norm=3.0, levels=shares.levels, length=length)
    longest = np.zeros(length)
    longest[seed % length] = 1e6  # all at the bound, in one direction
    given_in = [
        form.quantized(longest, random) + skellam_noise(length, variance=shares.share_variance, random=random)
        for _ in range(cohort)
    ]
    total = np.zeros(length, dtype=np.uint32)
    for one in given_in:
        total += wrapped(one)
    np.testing.assert_allclose(form.restored(total), sum(given_in) * (3.0 / shares.levels), rtol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"l2": 1.0},
        {"l1": 1.0},
        {"levels": 7},
        {"length": 3},
        {"counted": 21},
        {"colluding": 6},
        {"variance": 1e30},
        {"variance": 0.0},
        {"variance": math.inf},
        {"levels": 1 << 31},
        {"more": 1},
    ],
)
def test_shares_that_contradict_themselves_are_refused(changes: dict[str, Any]) -> None:
    facts = RULE.shares(2.0).model_dump()
    with pytest.raises(ValidationError):
        NoiseShares.model_validate(facts | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"shares": None},
        {"mechanism": "gaussian_capped"},
        {"noise_multiplier": 2.5},
        {"devices": ("a", "b")},
        {"devices": tuple(f"d{n}" for n in range(15))},
        {"devices": tuple(f"d{n}" for n in range(21))},
        {"cohort_rule": "poisson", "sampling_probability": 0.1},
        {"bands": 4},
        {"privacy_unit": "example", "device_id": "a", "devices": None, "population": None, "cohort_rule": None},
    ],
)
def test_events_that_contradict_their_shares_are_refused(changes: dict[str, Any]) -> None:
    honest = event()
    assert PrivacyEvent.model_validate(honest.model_dump()) == honest
    with pytest.raises(ValidationError):
        PrivacyEvent.model_validate(honest.model_dump() | changes)


def test_one_sum_costs_what_the_theorem_says() -> None:
    """By hand: 4 levels, one value, variance 64, at order 9: 9*16/128 + (17*16 + 24)/(4*64**2) = 1.14306..."""
    at_nine = 9 * 16 / 128 + (17 * 16 + 6 * 4) / (4 * 64**2) + math.log(8 / 9) - math.log(DELTA * 9) / 8
    assert skellam_rdp(9, l2=4.0, l1=4.0, variance=64.0) == pytest.approx(1.143066, abs=1e-6)
    # Where noise is little the other of the two bounds is the smaller: 2*16/2 + 3*4/2.
    assert skellam_rdp(2, l2=4.0, l1=4.0, variance=1.0) == pytest.approx(16 + 6)
    found = epsilon_of_charges([SkellamSums(l2=4.0, l1=4.0, variance=64.0, sums=1)], target_delta=DELTA)
    assert at_nine == pytest.approx(2.18980, abs=1e-4)
    assert 2.1 < found <= at_nine


@pytest.mark.parametrize(("shift", "variance"), [(1, 1.0), (3, 20.0), (40, 6400.0)])
def test_no_cheaper_than_the_exact_loss_of_one_value(shift: int, variance: float) -> None:
    values = np.arange(-2000, 2001)
    first = stats.skellam.pmf(values, variance / 2, variance / 2)
    second = stats.skellam.pmf(values - shift, variance / 2, variance / 2)
    found = epsilon_of_charges([SkellamSums(shift, shift, variance, 1)], target_delta=DELTA)
    assert np.maximum(first - math.exp(found) * second, 0).sum() <= DELTA
    if variance > 1:  # nor much dearer, where the bound is not for tiny noise
        assert np.maximum(first - math.exp(0.8 * found) * second, 0).sum() > DELTA


def test_the_finer_the_levels_the_nearer_to_gaussian_noise() -> None:
    costs = []
    for levels in (64, 512, 4096, 1 << 20):
        form = Quantization(clipping_norm=1.0, levels=levels, length=100_000)
        one = SkellamSums(form.norm_bound, form.absolute_bound, (2.0 * levels) ** 2, 5)
        costs.append(epsilon_of_charges([one], target_delta=DELTA))
    assert costs == sorted(costs, reverse=True)
    limit = min(
        5 * order / 8 + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1) for order in range(2, 100)
    )
    assert costs[-1] == pytest.approx(limit, rel=1e-4)
    exact = epsilon_of_steps(noise_multiplier=2.0, sampling_probability=1.0, steps=5, target_delta=DELTA)
    assert exact < costs[-1] < 1.1 * exact


@pytest.mark.parametrize(("noise", "q"), [(1.0, 0.01), (2.0, 0.3), (0.7, 1.0)])
def test_gaussian_sums_cost_what_another_accountant_says(noise: float, q: float) -> None:
    other = RdpAccountant(
        orders=[2, 8, 32, 200], neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    other.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(noise)))
    ours = [gaussian_rdp(order, noise_multiplier=noise, sampling_probability=q) for order in (2, 8, 32, 200)]
    np.testing.assert_allclose(ours, other._rdp, rtol=1e-9)


def test_a_bill_of_both_kinds_is_dearer_than_either_and_one_without_noise_is_infinite() -> None:
    gaussian, shares = (1.0, 2.0, 3), sums(RULE.shares(2.0), 2)
    both = epsilon_of_charges([gaussian, shares], target_delta=DELTA)
    assert both > max(epsilon_of_charges([one], target_delta=DELTA) for one in (gaussian, shares))
    # Both have noise 2, so that all five cost what five of one kind do.
    assert both == pytest.approx(epsilon_of_charges([sums(RULE.shares(2.0), 5)], target_delta=DELTA), rel=1e-3)
    assert epsilon_of_charges([gaussian], target_delta=DELTA) == pytest.approx(
        epsilon_of_steps(noise_multiplier=2.0, sampling_probability=1.0, steps=3, target_delta=DELTA)
    )
    assert epsilon_of_charges([(1.0, 0.0, 1), shares], target_delta=DELTA) == math.inf
    assert epsilon_of_charges([], target_delta=DELTA) == 0
    with pytest.raises(ValueError, match="target_delta"):
        epsilon_of_charges([shares], target_delta=1.0)


def test_each_device_pays_for_its_own_sums() -> None:
    bills = UserBills([event(1, devices=16), event(2, devices=17)])
    assert bills.charges_of("device-00") == (sums(RULE.shares(2.0), 2),)
    assert bills.charges_of("device-16") == (sums(RULE.shares(2.0), 1),)
    assert bills.charges_of(None) == ()
    known = user_epsilon([event(1), event(2)], target_delta=DELTA, is_drawing_secret=False)
    assert bills.epsilon(target_delta=DELTA) == known
    with pytest.raises(UnknownEventError, match="cannot be charged"):
        bills.add(event().model_copy(update={"population": "other"}))


def test_a_budget_is_kept_with_shares_as_without() -> None:
    budget = PrivacyBudget(target_epsilon=4.0, target_delta=DELTA)
    plan = UserPlan(rounds=10, sampling_probability=None, max_participations=3, min_separation=1, share_rule=RULE)
    noise = user_noise_for(budget, plan, UserBills())
    after = [event(n, noise=noise) for n in range(3)]
    assert 0.99 * 4.0 < user_epsilon(after, target_delta=DELTA) <= 4.0
    assert not can_afford(budget, UserBills(after), "device-00", event(9, noise=noise))
    assert can_afford(budget, UserBills(after), "device-18", event(9, noise=noise))
    with pytest.raises(BudgetExceededError, match=r"user-noise-multiplier \d+\.\d+ would fit"):
        require_users_affordable(budget, plan, UserBills(), noise_multiplier=1.0)
