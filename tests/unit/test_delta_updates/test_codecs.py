"""Codecs bring back every bit pattern, and refuse payloads that make no chunk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_updates import PackageFormatError
from delta_updates.codecs import (
    CODECS,
    MAX_CHUNK_BYTES,
    CodecName,
    Difference,
    ElementKind,
    Encoded,
    Full,
    Patch,
    Same,
    Section,
)
from delta_updates.codecs.elements import (
    contexts_of,
    element_kinds,
    moved_by,
    ordered_from_patterns,
    patterns_from_ordered,
    patterns_of,
    steps_between,
    unzigzag,
    zigzag,
)
from delta_updates.codecs.frames import pack
from delta_updates.codecs.layouts import Layout, arrange, restore
from delta_updates.codecs.leading import VALUES

_STEPPED = [kind for kind in ElementKind if kind.has_steps]
_FLOATS = [kind for kind in ElementKind if kind.is_float]
_kinds = st.sampled_from(list(ElementKind))
_stepped_kinds = st.sampled_from(_STEPPED)
_layouts = st.sampled_from(list(Layout))


def _arranged(values: np.ndarray, layout: Layout) -> list[bytes]:
    """Return the streams of every layout of format 1; the package writes only some of them."""
    if layout is Layout.BITS:
        return [np.packbits((values >> bit & 1).astype(np.uint8)).tobytes() for bit in range(8 * values.itemsize)]
    if layout is Layout.LEADING:
        symbols = VALUES.symbols_of(values)
        return [symbols.tobytes(), *VALUES.rest_streams(symbols, values)]
    return arrange(values, layout)


@st.composite
def _values(draw: st.DrawFn, width: int) -> np.ndarray:
    """Arbitrary patterns, some of them small, so that every symbol and plane appears."""
    size = draw(st.integers(0, 70))
    raw = np.frombuffer(draw(st.binary(min_size=size * width, max_size=size * width)), f"<u{width}")
    shifts = np.array(draw(st.lists(st.integers(0, 8 * width - 1), min_size=size, max_size=size)), f"<u{width}")
    return raw >> shifts


@pytest.mark.parametrize("width", [1, 2, 4])
def test_order_and_zigzag_are_bijections(width: int) -> None:
    patterns = np.arange(1 << min(8 * width, 16)).astype(f"<u{width}") * np.array(
        [65537 % (1 << 8 * width)], f"<u{width}"
    )
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
    if layout is Layout.CLASSES or (layout is Layout.LEADING and width == 8):
        return
    values = data.draw(_values(width))
    plain = b"".join(_arranged(values, layout))
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
        restore(b"".join(_arranged(values, Layout.LEADING)), len(values), width, Layout.LEADING), values
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
@given(data=st.data(), kind=_stepped_kinds)
def test_difference_brings_back_every_pattern(data: st.DataObject, kind: ElementKind) -> None:
    new, old = data.draw(_values(kind.width)), data.draw(_values(kind.width))
    count = min(len(new), len(old))
    new_raw, old_raw = new[:count].tobytes(), old[:count].tobytes()
    encoded = Difference().encode(new_raw, old_raw, kind)
    assert (encoded is None) == (count == 0)
    if encoded is not None:
        assert Difference().decode(encoded, old_raw, kind, len(new_raw)) == new_raw


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from([ElementKind.FLOAT16, ElementKind.BFLOAT16, ElementKind.FLOAT32]))
def test_differences_of_format_1_stay_readable(data: st.DataObject, kind: ElementKind) -> None:
    layout = data.draw(st.sampled_from([Layout.BITS, Layout.BYTES, Layout.LEADING]))
    new, old = data.draw(_values(kind.width)), data.draw(_values(kind.width))
    count = min(len(new), len(old))
    codes = steps_between(old[:count], new[:count], kind)[np.argsort(contexts_of(old[:count], kind), kind="stable")]
    plain = b"".join(_arranged(codes, layout))
    encoded = Encoded(layout, len(plain), pack([plain]))
    assert Difference().decode(encoded, old[:count].tobytes(), kind, count * kind.width) == new[:count].tobytes()


@pytest.mark.parametrize("kind", [kind for kind in _STEPPED if kind.width == 1])
def test_steps_of_bytes_are_bijections(kind: ElementKind) -> None:
    every = np.arange(256, dtype=np.uint8)
    old, new = np.repeat(every, 256), np.tile(every, 256)
    codes = steps_between(old, new, kind)
    assert np.array_equal(moved_by(old, codes, kind), new)
    assert not steps_between(every, every, kind).any()


def test_nibbles_step_by_themselves() -> None:
    old, new = np.array([0x5A, 0x5A, 0xF0], np.uint8), np.array([0x5B, 0x4A, 0x0F], np.uint8)
    # One up: 2; one down: 1. Both ends are neighbours.
    assert steps_between(old, new, ElementKind.NIBBLES).tolist() == [0x02, 0x10, 0x21]


@pytest.mark.parametrize("kind", _FLOATS)
def test_difference_keeps_signed_zeros_and_every_nan(kind: ElementKind) -> None:
    top = 1 << (8 * kind.width - 1)
    special = np.array([0, top, top - 1, 2 * top - 1, top - 2, 1, top + 1], f"<u{kind.width}")
    old, new = np.repeat(special, len(special)).tobytes(), np.tile(special, len(special)).tobytes()
    encoded = Difference().encode(new, old, kind)
    assert encoded is not None
    assert Difference().decode(encoded, old, kind, len(new)) == new


def test_sorting_by_the_exponent_pays() -> None:
    draw = np.random.default_rng(1)
    old = draw.normal(0, 0.02, 200_000)
    new = (old + draw.normal(0, 1e-4, old.size)).astype("<f2").tobytes()
    encoded = Difference().encode(new, old.astype("<f2").tobytes(), ElementKind.FLOAT16)
    codes = steps_between(old.astype("<f2").view("<u2"), patterns_of(new, ElementKind.FLOAT16), ElementKind.FLOAT16)
    unsorted = min(len(pack(_arranged(codes, layout))) for layout in (Layout.BITS, Layout.BYTES, Layout.LEADING))
    assert encoded is not None
    assert len(encoded.frame) < 0.9 * unsorted


def test_sections_that_move_otherwise_have_codes_of_their_own() -> None:
    draw = np.random.default_rng(2)
    old = draw.integers(0, 256, 40_000).astype(np.uint8)
    spread = np.repeat([1, 8] * 20, 1000)
    new = (old + draw.normal(0, spread).round().astype(int) % 256).astype(np.uint8)
    sections = [Section(1000, "narrow"), Section(1000, "wide")] * 20
    apart, together = (
        Difference().encode(new.tobytes(), old.tobytes(), ElementKind.INT8, sections=s) for s in (sections, ())
    )
    assert apart is not None
    assert together is not None
    assert len(apart.frame) < 0.95 * len(together.frame)
    for encoded in (apart, together):
        assert Difference().decode(encoded, old.tobytes(), ElementKind.INT8, len(old)) == new.tobytes()


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
    assert element_kinds("BF16") == (ElementKind.BFLOAT16,)
    assert element_kinds("F64") == (ElementKind.WORDS8,)
    assert element_kinds("F8_E4M3") == (ElementKind.FLOAT8_E4M3,)
    assert element_kinds("U8") == (ElementKind.NIBBLES, ElementKind.INT8)
    assert element_kinds("anything") == (ElementKind.BYTES,)
