"""The noisy sum over users, and each way in which one could promise more than it does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.mechanism import clip_update, noisy_average, norm_of
from privacy.randomness import SeededRandom

SHAPES = {"a": (2, 3), "b": (4,)}
VALUES = 10
Update = dict[str, npt.NDArray[Any]]


def update_of(value: float, dtype: Any = np.float32) -> Update:
    return {name: np.full(shape, value, dtype) for name, shape in SHAPES.items()}


def average(updates: list[Update], **changes: Any) -> npt.NDArray[np.float64]:
    options: dict[str, Any] = {
        "shapes": SHAPES,
        "clipping_norm": 1.0,
        "noise_multiplier": 0.0,
        "expected_contributions": 10,
        "unit_noise": np.zeros(VALUES),
    }
    found = noisy_average(updates, **(options | changes))
    return np.concatenate([found[name].ravel() for name in sorted(found)])


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32]),
        hnp.array_shapes(max_dims=2, max_side=5),
    ),
    st.floats(1e-3, 1e3),
)
def test_nothing_is_longer_than_the_bound_whatever_arrives(tensor: npt.NDArray[Any], bound: float) -> None:
    clipped = clip_update({"a": tensor}, clipping_norm=bound)["a"]
    assert np.isfinite(clipped).all()
    assert np.linalg.norm(clipped) <= bound * (1 + 1e-12)


def test_a_short_update_is_left_as_it_is_and_a_zero_one_divides_by_nothing() -> None:
    np.testing.assert_array_equal(clip_update(update_of(0.01), clipping_norm=1.0)["b"], update_of(0.01)["b"])
    np.testing.assert_array_equal(average([update_of(0.0)]), np.zeros(VALUES))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_nothing(bad: float) -> None:
    broken = update_of(0.1)
    broken["a"][0, 0] = bad
    np.testing.assert_array_equal(average([broken, update_of(0.1)]), average([update_of(0.1)]))


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float16, 6e4), (np.float32, 3e38), (np.float64, 1e307), (np.float64, -1e-200)]
)
def test_a_norm_neither_overflows_nor_vanishes(dtype: Any, value: float) -> None:
    update = update_of(value, dtype)
    assert norm_of(update) == pytest.approx(float(abs(dtype(value))) * math.sqrt(VALUES), rel=1e-9)
    length = np.linalg.norm(average([update], expected_contributions=1))
    assert length == pytest.approx(min(1.0, abs(value) * math.sqrt(VALUES)))


def test_one_update_moves_the_result_by_the_bound_at_most_however_many_examples_it_claims() -> None:
    others = [update_of(0.2) for _ in range(5)]
    moved = average([*others, update_of(1e6)]) - average(others)
    assert np.linalg.norm(moved) == pytest.approx(1.0 / 10)


@pytest.mark.parametrize("came", [0, 1, 5, 10])
def test_missing_contributions_change_neither_noise_nor_divisor(came: int) -> None:
    noise = SeededRandom(0).normals(VALUES)
    with_noise = average([update_of(0.05)] * came, noise_multiplier=2.0, clipping_norm=3.0, unit_noise=noise)
    without = average([update_of(0.05)] * came, clipping_norm=3.0)
    np.testing.assert_allclose(with_noise - without, 2.0 * 3.0 * noise / 10)
    np.testing.assert_allclose(without, came * 0.05 / 10, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clipping_norm": 0.0},
        {"clipping_norm": math.inf},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"expected_contributions": 0},
        {"unit_noise": np.zeros(VALUES - 1)},
        {"shapes": {"a": (2, 3), "b": (2, 2)}},
        {"shapes": {"a": (2, 3), "c": (4,)}},
    ],
)
def test_numbers_and_shapes_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"noisy sum|noise has shape|other tensors"):
        average([update_of(0.1)], **wrong)
