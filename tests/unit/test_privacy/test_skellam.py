"""Skellam noise in shares: its distribution, its accounting against exact numbers, and vectors as whole numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accountant import epsilon_of_steps
from privacy.errors import SecureSumError
from privacy.randomness import SeededRandom
from privacy.renyi import SkellamSums, epsilon_of_charges
from privacy.secure_aggregation.quantization import Quantization, wrapped
from privacy.skellam import poisson, skellam_noise, skellam_rdp


@pytest.mark.parametrize("mean", [0.3, 4.0, 11.9, 12.1, 60.0, 2000.0])
def test_poisson_numbers_have_the_distribution(mean: float) -> None:
    drawn = poisson(60_000, mean=mean, random=SeededRandom(1))
    edges = stats.poisson.ppf(np.linspace(0.05, 0.95, 10), mean)
    cells = np.unique(edges)
    seen = np.histogram(drawn, [-0.5, *(cells + 0.5), np.inf])[0]
    expected = np.diff([0.0, *stats.poisson.cdf(cells, mean), 1.0]) * drawn.size
    assert stats.chisquare(seen, expected).pvalue > 1e-4


@pytest.mark.parametrize("mean", [99_000.0, 101_000.0, 4e7, 1e11])
def test_large_poisson_numbers_are_normal_in_the_end(mean: float) -> None:
    drawn = poisson(50_000, mean=mean, random=SeededRandom(2)).astype(np.float64)
    assert drawn.mean() == pytest.approx(mean, abs=5 * math.sqrt(mean / drawn.size))
    assert drawn.var() == pytest.approx(mean, rel=0.03)
    assert stats.kstest((drawn - mean) / math.sqrt(mean), "norm").pvalue > 1e-4


def test_shares_add_up_to_the_noise_that_was_promised() -> None:
    variance = 500.0**2 / 20
    total = sum(skellam_noise(20_000, variance=variance, random=SeededRandom(seed)) for seed in range(20))
    assert np.std(total) == pytest.approx(500.0, rel=0.02)
    assert stats.kstest(total / 500.0, "norm").pvalue > 1e-4


@pytest.mark.parametrize("order", [2, 3, 8])
@pytest.mark.parametrize(("shift", "variance"), [(1, 4.0), (3, 20.0), (5, 200.0)])
def test_the_divergence_bound_lies_above_the_true_divergence(order: int, shift: int, variance: float) -> None:
    values = np.arange(-400, 401)
    first = stats.skellam.logpmf(values, variance / 2, variance / 2)
    second = stats.skellam.logpmf(values - shift, variance / 2, variance / 2)
    is_known = np.isfinite(first) & np.isfinite(second)
    terms = order * second[is_known] + (1 - order) * first[is_known]
    true = float(np.logaddexp.reduce(terms)) / (order - 1)
    bound = skellam_rdp(order, l2=shift, l1=shift, variance=variance)
    assert true <= bound
    assert bound < 2 * true


def test_with_fine_levels_it_costs_what_a_gaussian_costs() -> None:
    levels, multiplier = 65_536.0, 2.0
    sums = SkellamSums(levels, levels * math.sqrt(2.4e6), (multiplier * levels) ** 2, 5)
    found = epsilon_of_charges([sums], target_delta=1e-5)
    exact = epsilon_of_steps(noise_multiplier=multiplier, sampling_probability=1.0, steps=5, target_delta=1e-5)
    assert exact <= found <= 1.1 * exact


def test_more_sums_and_less_noise_cost_more() -> None:
    costs = [
        epsilon_of_charges([SkellamSums(100, 1000, variance, sums)], target_delta=1e-5)
        for variance, sums in ((4e4, 1), (4e4, 4), (1e4, 4))
    ]
    assert costs == sorted(costs)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(0.01, 100), st.integers(0, 1000))
def test_rounding_keeps_the_norm_and_is_right_on_average(length: int, norm: float, seed: int) -> None:
    random = SeededRandom(seed)
    form = Quantization(clipping_norm=norm, levels=4096, length=length)
    vector = random.normals(length)
    vector *= 0.9 * norm / np.linalg.norm(vector)
    whole = form.quantized(vector, random)
    assert np.linalg.norm(whole) <= form.norm_bound
    assert np.abs(whole).sum() <= form.absolute_bound
    assert np.abs(form.restored(wrapped(whole)) - vector).max() <= norm / 4096


def test_sums_come_back_through_the_modulus() -> None:
    random = SeededRandom(0)
    form = Quantization(clipping_norm=1.0, levels=65_536, length=1000)
    vectors = [v / np.linalg.norm(v) for v in (random.normals(1000) for _ in range(50))]
    total = np.zeros(1000, dtype=np.uint32)
    for vector in vectors:
        total += wrapped(form.quantized(vector, random))
    assert np.abs(form.restored(total) - sum(vectors)).max() < 50 / 65_536


def test_a_long_vector_is_clipped_and_one_without_direction_is_nothing() -> None:
    form = Quantization(clipping_norm=1.0, levels=1000, length=4)
    assert form.quantized(np.array([0.0, 1e30, 0.0, 0.0]), SeededRandom(0)).tolist() == [0, 1000, 0, 0]
    assert not form.quantized(np.array([0.0, np.nan, 1.0, np.inf]), SeededRandom(0)).any()
    assert not form.quantized(np.zeros(4), SeededRandom(0)).any()


def test_a_sum_that_could_wrap_around_is_refused_beforehand() -> None:
    form = Quantization(clipping_norm=1.0, levels=1 << 20, length=10)
    form.require_room(members=1000, noise_stddev=1e6)
    with pytest.raises(SecureSumError, match="fewer levels"):
        form.require_room(members=3000, noise_stddev=1e6)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="quantization"):
        Quantization(clipping_norm=0.0, levels=10, length=1)
    with pytest.raises(ValueError, match="Poisson mean"):
        poisson(1, mean=-1.0, random=SeededRandom(0))
    with pytest.raises(ValueError, match="order"):
        skellam_rdp(1, l2=1, l1=1, variance=1)
