"""Correlated noise: less of it in the model, the promise kept, and the same again after a crash."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.banded_matrix import coefficients, sensitivity
from privacy.banded_noise import BandedNoise
from privacy.keyed_random import KeyedRandom

KEY = bytes(range(32))
Matrix = npt.NDArray[np.float64]


def matrix(rounds: int, bands: int) -> Matrix:
    """C itself, the slow way."""
    column = coefficients(bands)
    found = np.zeros((rounds, rounds))
    for gap in range(min(rounds, bands)):
        found += np.diag(np.full(rounds - gap, column[gap]), -gap)
    return found


@pytest.mark.parametrize("bands", [1, 2, 5, 16])
def test_the_noise_is_the_independent_one_through_the_inverse_of_c(bands: int) -> None:
    noise = BandedNoise(KEY, bands=bands)
    made = np.stack([noise.at(number, count=7) for number in range(1, 13)])
    independent = np.stack([KeyedRandom(KEY, stream=number).normals(7) for number in range(1, 13)])
    np.testing.assert_allclose(matrix(12, bands) @ made, independent, atol=1e-12)


def test_after_a_crash_or_void_rounds_it_goes_on_as_if_nothing_had_been() -> None:
    whole = BandedNoise(KEY, bands=4)
    expected = [whole.at(number, count=5) for number in range(1, 11)]
    resumed = BandedNoise(KEY, bands=4)
    for number in (3, 4, 9, 9, 2, 10):
        np.testing.assert_array_equal(resumed.at(number, count=5), expected[number - 1])


def test_another_key_or_size_is_other_noise() -> None:
    noise = BandedNoise(KEY, bands=3)
    first = noise.at(2, count=1000)
    assert abs(np.corrcoef(first, BandedNoise(bytes(32), bands=3).at(2, count=1000))[0, 1]) < 0.15
    assert noise.at(2, count=10).shape == (10,)


@settings(max_examples=60, deadline=None)
@given(bands=st.integers(1, 12), gaps=st.lists(st.integers(1, 20), min_size=1, max_size=6), data=st.data())
def test_no_user_moves_c_x_by_more_than_the_stated_sensitivity(
    bands: int, gaps: list[int], data: st.DataObject
) -> None:
    rounds = [int(number) for number in np.cumsum(gaps)]
    c = matrix(max(rounds), bands)
    seed = data.draw(st.integers(0, 2**32 - 1))
    given_up = np.random.default_rng(seed).normal(size=(len(rounds), 3))
    x = np.zeros((max(rounds), 3))
    x[[number - 1 for number in rounds]] = given_up / np.linalg.norm(given_up, axis=1, keepdims=True)
    bound = sensitivity(rounds, bands=bands)
    assert np.linalg.norm(c @ x) <= bound + 1e-9
    same = np.zeros(max(rounds))
    same[[number - 1 for number in rounds]] = 1.0
    # Bands that the end of the run cuts off leave a little of the bound unused, and nothing else does.
    longer = np.concatenate([same, np.zeros(bands)])
    assert np.linalg.norm(matrix(longer.size, bands) @ longer) == pytest.approx(bound)
    if all(gap >= bands for gap in gaps[1:]):
        assert bound == pytest.approx(np.sqrt(len(rounds)))


@pytest.mark.parametrize(("rounds", "bands", "times_less"), [(100, 10, 2.3), (500, 50, 4.4), (1000, 250, 6.9)])
def test_the_model_gets_less_noise_than_from_independent_rounds(rounds: int, bands: int, times_less: float) -> None:
    prefixes = np.tril(np.ones((rounds, rounds)))
    banded = np.linalg.norm(prefixes @ np.linalg.inv(matrix(rounds, bands))) / np.sqrt(rounds)
    independent = np.linalg.norm(prefixes) / np.sqrt(rounds)
    assert independent / banded > times_less


def test_wrong_bands_and_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="bands must lie"):
        coefficients(0)
    with pytest.raises(ValueError, match="32 bytes"):
        KeyedRandom(b"short", stream=1)
