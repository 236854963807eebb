"""Codecs bring back every bit pattern, and refuse payloads that make no chunk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_updates import PackageFormatError
from delta_updates.codecs import CODECS, MAX_CHUNK_BYTES, CodecName, Difference, ElementKind, Encoded, Full, Patch, Same
from delta_updates.codecs.elements import (
    element_kind,
    ordered_from_patterns,
    patterns_from_ordered,
    patterns_of,
    unzigzag,
    zigzag,
)
from delta_updates.codecs.frames import pack
from delta_updates.codecs.layouts import Layout, arrange, restore

_FLOATS = [ElementKind.FLOAT16, ElementKind.BFLOAT16, ElementKind.FLOAT32]
_kinds = st.sampled_from(list(ElementKind))
_float_kinds = st.sampled_from(_FLOATS)
_layouts = st.sampled_from(list(Layout))


@st.composite
def _values(draw: st.DrawFn, width: int) -> np.ndarray:
    """Arbitrary patterns, some of them small, so that every symbol and plane appears."""
    size = draw(st.integers(0, 70))
    raw = np.frombuffer(draw(st.binary(min_size=size * width, max_size=size * width)), f"<u{width}")
    shifts = np.array(draw(st.lists(st.integers(0, 8 * width - 1), min_size=size, max_size=size)), f"<u{width}")
    return raw >> shifts


@pytest.mark.parametrize("width", [2, 4])
def test_order_and_zigzag_are_bijections(width: int) -> None:
    patterns = np.arange(1 << 16).astype(f"<u{width}") * np.array(65537 if width == 4 else 1, f"<u{width}")
    assert np.array_equal(patterns_from_ordered(ordered_from_patterns(patterns)), patterns)
    assert np.array_equal(unzigzag(zigzag(patterns)), patterns)
    assert len(np.unique(ordered_from_patterns(patterns))) == len(patterns)


def test_ordered_patterns_have_the_order_of_floats() -> None:
    floats = np.array([-np.inf, -65504, -1, -6e-8, -0.0, 0.0, 6e-8, 0.5, 65504, np.inf], "<f2")
    ordered = ordered_from_patterns(floats.view("<u2")).astype(int)
    assert (np.diff(ordered) > 0).all()
    assert ordered[5] - ordered[4] == 1


def test_zigzag_counts_small_steps_small() -> None:
    steps = np.array([0, -1, 1, -2, 2, -32768], "<i2").view("<u2")
    assert zigzag(steps).tolist() == [0, 1, 2, 3, 4, 65535]


@settings(deadline=None)
@given(data=st.data(), layout=_layouts, width=st.sampled_from([1, 2, 4, 8]))
def test_layouts_bring_back_all_values(data: st.DataObject, layout: Layout, width: int) -> None:
    if layout is Layout.LEADING and width == 8:
        return
    values = data.draw(_values(width))
    plain = b"".join(arrange(values, layout))
    assert np.array_equal(restore(plain, len(values), width, layout), values)
    with pytest.raises(PackageFormatError):
        restore(plain + b"\0", len(values), width, layout)
    if plain:
        with pytest.raises(PackageFormatError):
            restore(plain[:-1], len(values), width, layout)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_leading_symbols_cover_every_bit_length(width: int) -> None:
    powers = [1 << bit for bit in range(8 * width)]
    near = sorted({value for power in powers for value in (power - 1, power, power + 1) if value < 1 << (8 * width)})
    values = np.array([*near, (1 << (8 * width)) - 1], f"<u{width}")
    assert np.array_equal(
        restore(b"".join(arrange(values, Layout.LEADING)), len(values), width, Layout.LEADING), values
    )


def test_leading_refuses_what_no_value_has() -> None:
    with pytest.raises(PackageFormatError, match="symbol"):
        restore(bytes([16 + 8 * 12]) + bytes(8), 1, 2, Layout.LEADING)
    with pytest.raises(PackageFormatError, match="at most 4 bytes"):
        restore(bytes(8), 1, 8, Layout.LEADING)


@settings(deadline=None)
@given(data=st.data(), kind=_kinds)
def test_full_brings_back_every_pattern(data: st.DataObject, kind: ElementKind) -> None:
    raw = data.draw(_values(kind.width)).tobytes()
    encoded = Full().encode(raw, b"", kind)
    assert encoded is not None
    assert Full().decode(encoded, b"", kind, len(raw)) == raw


@settings(deadline=None)
@given(data=st.data(), kind=_float_kinds, layout=st.sampled_from([Layout.BITS, Layout.BYTES, Layout.LEADING]))
def test_difference_brings_back_every_pattern(data: st.DataObject, kind: ElementKind, layout: Layout) -> None:
    new, old = data.draw(_values(kind.width)), data.draw(_values(kind.width))
    count = min(len(new), len(old))
    new_raw, old_raw = new[:count].tobytes(), old[:count].tobytes()
    encoded = Difference().encode(new_raw, old_raw, kind)
    assert encoded is not None
    assert Difference().decode(encoded, old_raw, kind, len(new_raw)) == new_raw


@pytest.mark.parametrize("kind", _FLOATS)
def test_difference_keeps_signed_zeros_and_every_nan(kind: ElementKind) -> None:
    top = 1 << (8 * kind.width - 1)
    special = np.array([0, top, top - 1, 2 * top - 1, top - 2, 1, top + 1], f"<u{kind.width}")
    old, new = np.repeat(special, len(special)).tobytes(), np.tile(special, len(special)).tobytes()
    encoded = Difference().encode(new, old, kind)
    assert encoded is not None
    assert Difference().decode(encoded, old, kind, len(new)) == new


@pytest.mark.parametrize(
    ("share", "spread", "layout"), [(0.3, 3, Layout.BITS), (1.0, 3000, Layout.LEADING)], ids=["half", "dense"]
)
def test_difference_chooses_the_layout_that_fits(share: float, spread: int, layout: Layout) -> None:
    draw = np.random.default_rng(0)
    old = draw.normal(0, 0.02, 100_000).astype("<f4").view("<u4")
    steps = np.where(draw.random(old.size) < share, draw.normal(0, spread, old.size).round(), 0).astype("<i4")
    encoded = Difference().encode((old + steps.view("<u4")).tobytes(), old.tobytes(), ElementKind.FLOAT32)
    assert encoded is not None
    assert encoded.layout is layout


def test_sorting_by_the_exponent_pays() -> None:
    draw = np.random.default_rng(1)
    old = draw.normal(0, 0.02, 200_000)
    new = (old + draw.normal(0, 1e-4, old.size)).astype("<f2").tobytes()
    encoded = Difference().encode(new, old.astype("<f2").tobytes(), ElementKind.FLOAT16)
    codes = zigzag(
        ordered_from_patterns(patterns_of(new, ElementKind.FLOAT16))
        - ordered_from_patterns(old.astype("<f2").view("<u2"))
    )
    unsorted = min(len(pack(arrange(codes, layout))) for layout in (Layout.BITS, Layout.BYTES, Layout.LEADING))
    assert encoded is not None
    assert len(encoded.frame) < 0.95 * unsorted


def test_difference_cannot_express_other_things() -> None:
    assert Difference().encode(b"1234", b"1234", ElementKind.WORDS4) is None
    assert Difference().encode(b"1234", b"12", ElementKind.FLOAT16) is None


def test_same() -> None:
    assert Same().encode(b"ab", b"ac", ElementKind.BYTES) is None
    encoded = Same().encode(b"ab", b"ab", ElementKind.BYTES)
    assert encoded is not None
    assert Same().decode(encoded, b"ab", ElementKind.BYTES, 2) == b"ab"
    with pytest.raises(PackageFormatError):
        Same().decode(encoded, b"abc", ElementKind.BYTES, 2)
    with pytest.raises(PackageFormatError):
        Same().decode(Encoded(Layout.RAW, 0, b"x"), b"ab", ElementKind.BYTES, 2)


@settings(deadline=None)
@given(data=st.data())
def test_patch_brings_back_every_file(data: st.DataObject) -> None:
    words = st.lists(st.sampled_from([b"alpha ", b"beta ", b"\0", b"a much longer piece of text "]), min_size=1)
    source = b"".join(data.draw(words)) + data.draw(st.binary(max_size=50))
    cut = data.draw(st.integers(0, len(source)))
    target = data.draw(st.binary(max_size=20)) + source[cut:] + data.draw(st.binary(min_size=1)) + source[:cut]
    encoded = Patch().encode(target, source, ElementKind.BYTES)
    assert encoded is not None
    assert Patch().decode(encoded, source, ElementKind.BYTES, len(target)) == target


def test_patch_is_for_small_files() -> None:
    large = bytes(MAX_CHUNK_BYTES + 1)
    assert Patch().encode(b"a", b"", ElementKind.BYTES) is None
    assert Patch().encode(large, b"a", ElementKind.BYTES) is None
    assert Patch().encode(b"a", large, ElementKind.BYTES) is None


def _patch(edits: list[tuple[int, int, int]], payload: bytes) -> Encoded:
    plain = len(edits).to_bytes(4, "little") + np.array(edits, "<i8").tobytes() + payload
    return Encoded(Layout.RAW, len(plain), pack([plain]))


@pytest.mark.parametrize(
    "edits",
    [
        [(4, 0, 0)],
        [(3, 1, 0), (-1, 0, 0)],
        [(-1, 4, 0)],
        [(4, -1, 0)],
        [(0, 0, -1), (3, 0, 0)],
        [(0, 0, 2), (3, 0, 0)],
        [(2**63 - 1, 2**63 - 1, 5), (3, 0, 0)],
        [(0, 0, -(2**63)), (3, 0, 0)],
        [(2, 0, 0)],
        [],
    ],
)
def test_patch_refuses_edits_that_reach_outside(edits: list[tuple[int, int, int]]) -> None:
    with pytest.raises(PackageFormatError):
        Patch().decode(_patch(edits, b"\0\0\0"), b"abcd", ElementKind.BYTES, 3)


def test_patch_refuses_a_count_that_does_not_fit() -> None:
    plain = (2**32 - 1).to_bytes(4, "little") + b"abc"
    with pytest.raises(PackageFormatError):
        Patch().decode(Encoded(Layout.RAW, len(plain), pack([plain])), b"abcd", ElementKind.BYTES, 3)
    with pytest.raises(PackageFormatError):
        Patch().decode(Encoded(Layout.RAW, 2, pack([b"ab"])), b"abcd", ElementKind.BYTES, 3)


@settings(max_examples=300, deadline=None)
@given(
    codec=st.sampled_from([CodecName.FULL, CodecName.DIFFERENCE, CodecName.PATCH]),
    kind=_kinds,
    layout=_layouts,
    plain=st.binary(max_size=200),
    count=st.integers(1, 12),
)
def test_any_payload_makes_the_length_or_is_refused(
    codec: CodecName, kind: ElementKind, layout: Layout, plain: bytes, count: int
) -> None:
    length = count * kind.width
    encoded = Encoded(layout, len(plain), pack([plain]))
    try:
        made = CODECS[codec].decode(encoded, bytes(length), kind, length)
    except PackageFormatError:
        return
    assert len(made) == length


def test_dtypes() -> None:
    assert element_kind("BF16") is ElementKind.BFLOAT16
    assert element_kind("F64") is ElementKind.WORDS8
    assert element_kind("F8_E4M3") is ElementKind.BYTES
    assert element_kind("anything") is ElementKind.BYTES
