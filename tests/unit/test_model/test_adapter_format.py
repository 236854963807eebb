import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model import AdapterError
from model.adapter_format import BITS, QuantizedFactor, quantize_factor, stored_factor

FORMS = pytest.mark.parametrize("bits", [8, 4])
# Of any size that weights may have, with zeros, and numbers that float32 keeps only in part.
NUMBERS = st.floats(min_value=-1e4, max_value=1e4, width=32, allow_subnormal=True)
FACTORS = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 8).map(lambda n: 2 * n)), elements=NUMBERS)


def half_a_level(factor: QuantizedFactor) -> np.ndarray:
    """Half of each row's scale, and what rounding a product to float32 adds."""
    return factor.scales.astype(np.float64)[:, None] * (0.5 + 256 * 2.0**-24)


@FORMS
@given(values=FACTORS)
@settings(max_examples=300, deadline=None)
def test_no_value_moves_by_more_than_half_a_level(bits: int, values: np.ndarray) -> None:
    factor = quantize_factor(values, bits=bits)
    assert (np.abs(factor.floats().astype(np.float64) - values) <= half_a_level(factor)).all()


@FORMS
@given(values=FACTORS, other=FACTORS)
@settings(max_examples=300, deadline=None)
def test_what_a_factor_stands_for_quantises_to_itself(bits: int, values: np.ndarray, other: np.ndarray) -> None:
    # Also when its scales were kept from another release, and are larger than they need be.
    first = quantize_factor(values, bits=bits)
    same_shape = np.resize(other, values.shape).astype(np.float32)
    for factor in (first, quantize_factor(same_shape, bits=bits, kept=first.scales)):
        again = quantize_factor(factor.floats(), bits=bits, kept=factor.scales)
        np.testing.assert_array_equal(again.codes, factor.codes)
        np.testing.assert_array_equal(again.scales, factor.scales)


@FORMS
@given(start=FACTORS, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_with_feedback_errors_do_not_add_up_over_releases(bits: int, start: np.ndarray, seed: int) -> None:
    """Master = release + what was left behind + update, telescoped: the sum of all updates, and half a level."""
    rng = np.random.default_rng(seed)
    total, left_behind, factor = start.astype(np.float64), np.zeros(start.shape, np.float32), None
    trained = start
    for _ in range(12):
        master = (trained + left_behind).astype(np.float32)
        factor = quantize_factor(master, bits=bits, kept=None if factor is None else factor.scales)
        left_behind = master - factor.floats()
        # Too small for one rounding to notice: without feedback it would be lost twelve times.
        update = (rng.normal(size=start.shape) * 0.1 * factor.scales[:, None]).astype(np.float32)
        trained = factor.floats() + update
        total += update
    factor = quantize_factor((trained + left_behind).astype(np.float32), bits=bits, kept=factor.scales)
    rounding = 100 * 2.0**-24 * np.abs(total).max()
    assert (np.abs(factor.floats() - total) <= half_a_level(factor) + rounding).all()


@FORMS
def test_a_scale_is_kept_while_it_fits_so_that_what_did_not_move_did_not_change(bits: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 64)).astype(np.float32)
    first = quantize_factor(values, bits=bits)
    moved = values.copy()
    moved[0, :3] = 0.0
    moved[1] *= 10
    second = quantize_factor(moved, bits=bits, kept=first.scales)
    assert second.scales[0] == first.scales[0]
    assert np.flatnonzero(second.codes[0] != first.codes[0]).max() < 3
    assert second.scales[1] > first.scales[1]
    # And a scale that has become far too coarse is not kept.
    third = quantize_factor(values / 4, bits=bits, kept=first.scales)
    assert (third.scales < first.scales / 3).all()
    assert (quantize_factor(values * 0, bits=bits, kept=first.scales).scales == first.scales).all()


@FORMS
def test_storing_and_reading_give_the_same_factor(bits: int) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = np.tile(np.arange(low, high + 1, dtype=np.int8), (3, 1))
    factor = QuantizedFactor(codes, np.array([1e-30, 0.1, 3e5], np.float32), bits)
    stored = factor.stored()
    assert stored["values"].nbytes == codes.size * bits // 8
    again = read_back(stored, bits)
    np.testing.assert_array_equal(again.codes, codes)
    np.testing.assert_array_equal(again.scales, factor.scales)


def test_two_int4_share_a_byte_the_even_one_in_the_low_half() -> None:
    factor = QuantizedFactor(np.array([[-8, 7, 0, 1]], np.int8), np.ones(1, np.float32), 4)
    assert factor.stored()["values"].tolist() == [[0xF0, 0x98]]


@FORMS
def test_torch_and_numpy_and_any_number_of_threads_make_the_same_bits(bits: int) -> None:
    rng = np.random.default_rng(1)
    factor = quantize_factor((rng.normal(size=(8, 4096)) * 0.03).astype(np.float32), bits=bits)
    expected = factor.floats().view(np.uint32)
    codes, scales = torch.from_numpy(factor.codes), torch.from_numpy(factor.scales)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            ours = codes.to(torch.float32) * scales[:, None]
            np.testing.assert_array_equal(ours.numpy().view(np.uint32), expected)
    finally:
        torch.set_num_threads(before)
    # And the value is the real product, rounded once.
    exact = factor.codes.astype(np.float64) * factor.scales.astype(np.float64)[:, None]
    np.testing.assert_array_equal(exact.astype(np.float32).view(np.uint32), expected)


def test_an_odd_width_has_no_int4_and_a_value_that_is_no_number_no_level() -> None:
    with pytest.raises(AdapterError, match=r"w has 3 numbers a rank.*choose int8"):
        quantize_factor(np.ones((2, 3), np.float32), bits=4, name="w")
    assert quantize_factor(np.ones((2, 3), np.float32), bits=8).codes.shape == (2, 3)
    for wrong in (np.nan, np.inf):
        with pytest.raises(AdapterError, match="w has values that are not finite"):
            quantize_factor(np.full((1, 2), wrong, np.float32), bits=8, name="w")
    with pytest.raises(AdapterError, match="w has values up to 3e"):
        quantize_factor(np.full((1, 2), 3e38, np.float32), bits=4, name="w")


def test_numbers_too_small_for_a_scale_become_zero() -> None:
    factor = quantize_factor(np.full((1, 2), 1e-42, np.float32), bits=8)
    assert factor.scales[0] >= np.finfo(np.float32).tiny
    assert (factor.floats() == 0).all()


def parts_of(stored: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], np.ndarray]]:
    names = {"int8": "I8", "uint8": "U8", "float32": "F32", "float16": "F16"}
    return {
        part: (names[values.dtype.name], values.shape, np.ascontiguousarray(values).reshape(-1).view(np.uint8))
        for part, values in stored.items()
    }


def read_back(stored: dict[str, np.ndarray], bits: int, rank: int = 3) -> QuantizedFactor:
    return stored_factor("w", parts_of(stored), rank=rank, bits=bits)


def good(bits: int) -> dict[str, np.ndarray]:
    return quantize_factor(np.ones((3, 8), np.float32), bits=bits).stored()


@FORMS
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e-40, 3e38])
def test_a_scale_that_is_no_positive_number_is_refused(bits: int, scale: float) -> None:
    stored = good(bits)
    stored["scales"][1] = scale
    with pytest.raises(AdapterError, match=r"w\.scales has a scale.*take the adapter again"):
        read_back(stored, bits)


@FORMS
@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("values", lambda values: values.astype(np.float32), r"w\.values is F32"),
        ("values", lambda values: values[:2], r"w\.values is .* of shape \[2, \d\]"),
        ("values", lambda values: values.reshape(-1), r"w\.values is .* of shape \[\d+\]"),
        ("values", lambda values: values[None], r"w\.values"),
        ("scales", lambda scales: scales.astype(np.float16), r"w\.scales is F16"),
        ("scales", lambda scales: scales[:2], r"w\.scales is F32 of shape \[2\]"),
        ("scales", lambda scales: scales[:, None], r"w\.scales is F32 of shape \[3, 1\]"),
    ],
)
def test_a_part_of_another_dtype_or_shape_is_named(bits: int, part: str, change: object, said: str) -> None:
    stored = good(bits)
    stored[part] = change(stored[part])  # type: ignore[operator]
    with pytest.raises(AdapterError, match=said):
        read_back(stored, bits)


def test_int8_is_not_taken_for_int4_nor_the_other_way_round() -> None:
    for bits, other in ((8, 4), (4, 8)):
        with pytest.raises(AdapterError, match=f"an int{other} adapter"):
            read_back(good(bits), other)


@FORMS
@pytest.mark.parametrize("part", ["values", "scales"])
def test_a_missing_part_is_named(bits: int, part: str) -> None:
    stored = good(bits)
    del stored[part]
    with pytest.raises(AdapterError, match=f"w is stored as .* int{bits} needs values and scales"):
        read_back(stored, bits)
    with pytest.raises(AdapterError, match="'more'"):
        read_back(good(bits) | {"more": good(bits)["scales"]}, bits)


def test_bits_are_named() -> None:
    assert BITS == {"int8": 8, "int4": 4}
