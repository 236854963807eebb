"""`places_of` is `np.flatnonzero`, whatever way it takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_updates.codecs.places import places_of


@given(
    count=st.integers(0, 1 << 16),
    share=st.one_of(st.floats(0, 1), st.floats(0.03, 0.11)),
    seed=st.integers(0, 1 << 30),
)
def test_the_places_are_where_the_condition_holds(count: int, share: float, seed: int) -> None:
    condition = np.random.default_rng(seed).random(count) < share
    np.testing.assert_array_equal(places_of(condition), np.flatnonzero(condition))


@pytest.mark.parametrize("where", [slice(0, 1 << 12), slice(-(1 << 12), None), slice(None, None, 16)])
def test_what_is_added_inside_is_never_seen(where: slice) -> None:
    condition = np.zeros(1 << 16, dtype=np.bool_)
    condition[where] = True
    np.testing.assert_array_equal(places_of(condition), np.arange(1 << 16)[where])
