"""Rows are found again where some were put in, taken out or replaced, although all of them may have moved a little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_updates.codecs import ElementKind
from delta_updates.rows import Block, align_rows

_WIDE = st.integers(0, 2**16 - 1)
_MATRIX = st.lists(st.lists(_WIDE, min_size=3, max_size=3), min_size=1, max_size=30)


def _rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, (count, 8)).astype("<f2").view("<u2")


def _trained(rows: np.ndarray) -> np.ndarray:
    return rows + np.random.default_rng(7).integers(0, 4, rows.shape).astype("<u2")


@given(new=_MATRIX, old=_MATRIX)
def test_blocks_have_every_row_once_and_start_where_there_is_one(new: list[list[int]], old: list[list[int]]) -> None:
    blocks = align_rows(np.array(new, "<u2"), np.array(old, "<u2"), ElementKind.FLOAT16)
    assert [row for block in blocks for row in range(block.start, block.start + block.count)] == list(range(len(new)))
    for block in blocks:
        assert block.source is None or 0 <= block.source <= len(old) - block.count


@pytest.mark.parametrize("change", [lambda rows: rows, _trained], ids=["as they were", "trained"])
def test_a_replaced_block_is_new_and_the_rest_is_found(change: object) -> None:
    old = _rows(0, 200)
    new = np.concatenate([old[:80], _rows(1, 12), old[90:]])
    blocks = align_rows(change(new), old, ElementKind.FLOAT16)  # type: ignore[operator]
    assert blocks[0] == Block(0, 80, 0)
    assert blocks[-1] == Block(92, 110, 90)
    # Ten old rows stood where there are twelve: none is like another.
    assert all(block.source is None for block in blocks[1:-1])


def test_shifts_too_many_to_try_are_those_of_equal_rows() -> None:
    old = _rows(0, 300)
    new = np.concatenate([old[:100], _rows(1, 500), old[100:200], _rows(2, 77), old[200:]])
    found = [block for block in align_rows(new, old, ElementKind.FLOAT16) if block.source is not None]
    assert found == [Block(0, 100, 0), Block(600, 100, 100), Block(777, 100, 200)]
