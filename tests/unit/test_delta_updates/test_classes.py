"""Layout CLASSES: every value comes back, whatever the contexts; every other payload is refused, soon and in bounds."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from delta_updates import PackageFormatError
from delta_updates.codecs import Difference, ElementKind, Encoded, Section
from delta_updates.codecs.classes import arrange_classes, restore_classes
from delta_updates.codecs.digits import DIGITS, add_tails, digits_of, escapes, head_count, split
from delta_updates.codecs.frames import pack, unpack
from delta_updates.codecs.grouping import merge_alike, merge_neighbours
from delta_updates.codecs.information import LOG2_TABLE, UNIT_BITS, information, log2
from delta_updates.codecs.layouts import Layout
from delta_updates.codecs.leading import GAPS, VALUES
from delta_updates.codecs.streams import Streams

_STEPPED = [kind for kind in ElementKind if kind.has_steps]


def _entry(first: int, mode: int, coded: int) -> bytes:
    return np.array([(first, mode, coded)], dtype=[("first", "<u2"), ("mode", "u1"), ("coded", "<u4")]).tobytes()


def _restore(plain: bytes, contexts: list[int], width: int = 2) -> list[int]:
    streams = Streams(plain)
    values = restore_classes(streams, np.array(contexts, np.uint8), width)
    streams.finish()
    return values.tolist()


@settings(deadline=None)
@given(data=st.data(), width=st.sampled_from([1, 2, 4]))
def test_every_value_comes_back(data: st.DataObject, width: int) -> None:
    count = data.draw(st.integers(1, 300))
    # Few contexts with distributions of their own: zeros only, small, anything.
    contexts = data.draw(hnp.arrays(np.uint8, count, elements=st.sampled_from([0, 3, 4, 200, 255])))
    tops = np.array([1, 1 << 8 * width, 3, 20, 2])[np.searchsorted([0, 3, 4, 200, 255], contexts)]
    values = np.random.default_rng(count).integers(0, tops).astype(f"<u{width}")
    streams = Streams(b"".join(arrange_classes(values, contexts)))
    assert np.array_equal(restore_classes(streams, contexts, width), values)
    streams.finish()


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("spread", [0.5, 2.0, 2000.0])
def test_a_class_stands_near_its_entropy(share: float, spread: float) -> None:
    draw = np.random.default_rng(0)
    count = 300_000
    steps = np.where(draw.random(count) < share, draw.normal(0, spread, count).round(), 0).astype(int)
    values = np.where(steps < 0, -2 * steps - 1, 2 * steps).astype("<u2")
    size = 8 * len(pack(arrange_classes(values, np.zeros(count, np.uint8)), level=1))
    counts = np.bincount(VALUES.symbols_of(values)).astype(np.int64)
    rests = np.maximum(VALUES.symbols_of(values).astype(int) // 8 - 1, 0).sum()
    assert size < 1.05 * (int(information(counts)) / (1 << UNIT_BITS) + rests) + 2500


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_values_far_from_where_they_were_have_wide_classes(dtype: str) -> None:
    # Weights that were zero: c holds the sign, the mantissa and, on top, the exponent of the new value.
    weights = np.random.default_rng(0).normal(0, 1e-3, 100_000).astype("<f4")
    patterns = weights.view("<u4") if dtype == "<u4" else (weights.view("<u4") >> 16).astype("<u2")
    top = patterns.dtype.type(8 * patterns.itemsize - 1)
    values = patterns << patterns.dtype.type(1) | patterns >> top
    contexts = np.zeros(len(values), np.uint8)
    plain = b"".join(streams := arrange_classes(values, contexts))
    assert plain[3] & 0x40
    exponents = np.bincount(values >> (8 * values.itemsize - 8)).astype(np.int64)
    ideal = int(information(exponents)) / (1 << UNIT_BITS) / 8 + len(values) * (values.itemsize - 1)
    assert len(pack(streams, level=1)) < 1.05 * ideal + 200
    assert np.array_equal(restore_classes(Streams(plain), contexts, values.itemsize), values)


def test_narrow_and_wide_classes_side_by_side() -> None:
    draw = np.random.default_rng(0)
    contexts = draw.choice([0, 5, 9, 40], 50_000).astype(np.uint8)
    wide = draw.integers(0x6000, 0x8000, len(contexts))
    steps = draw.integers(0, 4, len(contexts)) * (draw.random(len(contexts)) < 0.1)
    values = np.where(np.isin(contexts, [0, 9]), wide, steps).astype("<u2")
    plain = b"".join(arrange_classes(values, contexts))
    modes = [plain[3 + 7 * number] for number in range(plain[0])]
    assert [bool(mode & 0x40) for mode in modes] == [True, False, True, False]
    streams = Streams(plain)
    assert np.array_equal(restore_classes(streams, contexts, 2), values)
    streams.finish()


def test_unused_and_rare_contexts_cost_no_class_each() -> None:
    draw = np.random.default_rng(1)
    values, contexts = draw.integers(0, 9, 5000).astype("<u2"), draw.integers(0, 256, 5000).astype(np.uint8)
    assert arrange_classes(values, contexts)[0][0] == 1


def test_at_most_255_classes() -> None:
    contexts = np.repeat(np.arange(512, dtype=np.uint16), 300)
    values = (contexts * 37 % 1009).astype("<u2")
    plain = b"".join(arrange_classes(values, contexts))
    assert plain[0] == 255
    assert np.array_equal(restore_classes(Streams(plain), contexts, 2), values)


@pytest.mark.parametrize(
    ("plain", "reason"),
    [
        (b"", "ends inside"),
        (b"\0", "increase from 0"),
        (b"\1" + _entry(1, 0, 4) + bytes(4), "increase from 0"),
        (b"\2" + _entry(0, 0, 4) + _entry(0, 0, 0) + bytes(4), "increase from 0"),
        (b"\1" + _entry(0, 5, 4) + bytes(4), "radices"),
        (b"\1" + _entry(0, 0, 3) + bytes(3), "codes 3 values of 4"),
        (b"\1" + _entry(0, 0, 2**32 - 1), "values of 4"),
        (b"\1" + _entry(0, 0x80, 5) + bytes(10), "codes 5 values of 4"),
        (b"\1" + _entry(0, 0x80, 2) + b"\2\1" + bytes(2), "gaps reach value 4"),
        (b"\1" + _entry(0, 0x80, 1) + b"\x7b" + b"\xff" * 12, "gaps reach"),
        (b"\1" + _entry(0, 0x80, 1) + b"\x7c" + b"\xff" * 12, "too high"),
        (b"\1" + _entry(0, 3, 4) + b"\xf3", "no 5 digits of radix 3"),
        (b"\1" + _entry(0, 16, 4) + b"\xff\0\xff\0", "above 255"),
        (b"\1" + _entry(0, 0x80, 1) + b"\0\xff", "above 255"),
        (b"\1" + _entry(0, 0, 4) + b"\0\0\0\x70", "too high for values of 2 bytes"),
        (b"\1" + _entry(0, 0, 4) + b"\0\0\0\x10", "ends inside"),
        (b"\1" + _entry(0, 0, 4) + bytes(5), "its streams end"),
        (b"\1" + _entry(0, 0x40, 4) + bytes(7), "ends inside"),
        (b"\1" + _entry(0, 0x40, 4) + bytes(9), "its streams end"),
        (b"\1" + _entry(0, 0xC0, 4) + bytes(40), "cannot be wide"),
    ],
)
def test_what_no_builder_writes_is_refused(plain: bytes, reason: str) -> None:
    with pytest.raises(PackageFormatError, match=reason):
        _restore(plain, [0, 1, 2, 255])


def test_the_smallest_payloads_by_hand() -> None:
    assert _restore(b"\1" + _entry(0, 0, 3) + b"\0\7\x10\x80", [9, 9, 9]) == [0, 7, 17]
    assert _restore(b"\2" + _entry(0, 0x82, 1) + _entry(5, 3, 2) + b"\1\1\x08\0\0\5", [0, 5, 0, 6]) == [0, 2, 2, 7]
    assert _restore(b"\1" + _entry(0, 0x40, 2) + b"\x61\x00\x23\x45", [9, 9]) == [0x6123, 0x45]


def test_a_payload_of_many_classes_takes_no_time_or_memory() -> None:
    table = b"\xff" + b"".join(_entry(256 * i // 255, 0x80, 0) for i in range(255))
    contexts = np.zeros(1 << 20, np.uint8)
    tracemalloc.start()
    values = restore_classes(Streams(table), contexts, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not values.any()
    assert peak < 24 << 20


def _difference(kind: ElementKind) -> tuple[bytes, Encoded]:
    draw = np.random.default_rng(2)
    old = draw.integers(0, 256, 600 * kind.width, dtype=np.uint8)
    new = old.copy()
    new[:: 3 * kind.width] += draw.integers(0, 3, len(new[:: 3 * kind.width])).astype(np.uint8)
    sections = [Section(100, "a"), Section(200, "b"), Section(300, "a")]
    encoded = Difference().encode(new.tobytes(), old.tobytes(), kind, sections=sections)
    assert encoded is not None
    return old.tobytes(), encoded


_GOOD = {kind: _difference(kind) for kind in _STEPPED}


@settings(max_examples=400, deadline=None)
@given(data=st.data(), kind=st.sampled_from(_STEPPED))
def test_a_damaged_payload_makes_the_length_or_is_refused(data: st.DataObject, kind: ElementKind) -> None:
    source, encoded = _GOOD[kind]
    plain = bytearray(unpack(encoded.frame, encoded.plain_length))
    # Most damage belongs where the structure is.
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.one_of(st.integers(0, min(40, len(plain) - 1)), st.integers(0, len(plain) - 1)))
        plain[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(plain), len(plain) - 1, len(plain) // 2]))
    broken = Encoded(Layout.CLASSES, cut, pack([bytes(plain[:cut])]))
    try:
        made = Difference().decode(broken, source, kind, len(source))
    except PackageFormatError:
        return
    assert len(made) == len(source)


@settings(max_examples=300, deadline=None)
@given(plain=st.binary(max_size=80), kind=st.sampled_from(_STEPPED), count=st.integers(1, 9))
def test_any_payload_makes_the_length_or_is_refused(plain: bytes, kind: ElementKind, count: int) -> None:
    source = bytes(range(count * kind.width))
    for start in (b"", b"\0\0", b"\0\0\1" + _entry(0, 0x83, 1), b"\0\0\1" + _entry(0, 3, count)):
        encoded = Encoded(Layout.CLASSES, len(start + plain), pack([start + plain]))
        try:
            made = Difference().decode(encoded, source, kind, len(source))
        except PackageFormatError:
            continue
        assert len(made) == len(source)


def test_a_difference_of_too_many_elements_is_refused() -> None:
    many = bytes((1 << 21) + 1)
    assert Difference().encode(many, many, ElementKind.INT8) is None
    plain = b"\0\0\1" + _entry(0, 0x80, 0)
    with pytest.raises(PackageFormatError, match="have classes"):
        Difference().decode(Encoded(Layout.CLASSES, len(plain), pack([plain])), many, ElementKind.INT8, len(many))


@pytest.mark.parametrize("kind", _STEPPED)
@pytest.mark.parametrize("share", [0.02, 1.0])
def test_both_directions_take_little_memory(kind: ElementKind, share: float) -> None:
    draw = np.random.default_rng(3)
    count = (4 << 20) // kind.width if share < 1 and kind.width > 1 else 1 << 20
    old = draw.integers(0, 256, count * kind.width, dtype=np.uint8)
    new = old ^ (draw.random(old.size) < share)
    tracemalloc.start()
    encoded = Difference().encode(new.tobytes(), old.tobytes(), kind)
    assert encoded is not None
    building = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert Difference().decode(encoded, old.tobytes(), kind, old.size) == new.tobytes()
    applying = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert building < 88 << 20
    assert applying < 76 << 20


def test_sections_that_do_not_fill_the_chunk_are_refused() -> None:
    plain = b"\1\0" + (3).to_bytes(4, "little") + b"\0" + b"\1" + _entry(0, 0, 4) + bytes(4)
    with pytest.raises(PackageFormatError, match="sections hold 3 values"):
        Difference().decode(Encoded(Layout.CLASSES, len(plain), pack([plain])), bytes(8), ElementKind.FLOAT16, 8)


@settings(deadline=None)
@given(symbols=hnp.arrays(np.uint8, st.integers(0, 60)), radix=st.sampled_from(list(DIGITS)))
def test_heads_and_tails_are_the_symbols(symbols: np.ndarray, radix: int) -> None:
    heads, tails = split(symbols, radix)
    assert len(heads) == head_count(len(symbols), radix)
    digits = digits_of(heads, len(symbols), radix).copy()
    places = escapes(digits, radix)
    assert len(places) == len(tails)
    add_tails(digits, places, tails)
    assert np.array_equal(digits, symbols)


@pytest.mark.parametrize("scale", [VALUES, GAPS])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_leading_symbols_rise_with_the_values(scale: object, width: int) -> None:
    powers = [1 << bit for bit in range(8 * width)]
    near = {
        value for power in powers for value in (power - 1, power, power + 1, power * 3 // 2) if value < 2 * powers[-1]
    }
    values = np.array(sorted({*near, 2 * powers[-1] - 1}), f"<u{width}")
    assert isinstance(scale, type(VALUES))
    symbols = scale.symbols_of(values)
    assert (np.diff(symbols.astype(int)) >= 0).all()
    streams = Streams(b"".join(scale.rest_streams(symbols, values)))
    assert np.array_equal(scale.values_of(symbols, streams, width), values)
    streams.finish()


def test_logarithms_are_the_same_on_every_platform() -> None:
    exact = np.log2(1 + np.arange(len(LOG2_TABLE)) / (len(LOG2_TABLE) - 1)) * (1 << UNIT_BITS)
    # Far more than any log2 errs; the whole numbers at both ends are exact anywhere.
    assert (np.abs(exact % 1 - 0.5)[1:-1] > 1e-6).all()
    numbers = np.array([1, 2, 3, 1000, (1 << 22) + 1, (1 << 31) - 1], np.int64)
    assert np.abs(log2(numbers) / (1 << UNIT_BITS) - np.log2(numbers)).max() < 1e-6
    assert log2(np.zeros(2, np.int64)).tolist() == [0, 0]


def test_information_is_the_entropy() -> None:
    counts = np.array([[8, 8, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]], np.int64)
    assert (information(counts) / (1 << UNIT_BITS)).tolist() == [16.0, 0.0, 0.0]


def test_what_is_alike_is_merged() -> None:
    narrow, wide = np.array([9000, 500, 500, 0]), np.array([2500, 2500, 2500, 2500])
    rows = np.stack([narrow, narrow // 2, wide, wide // 3]).astype(np.int64)
    assert [first for first, _ in merge_neighbours(rows)] == [0, 2]
    assert merge_alike(rows[[0, 2, 1, 3]][:, None, :]) == [0, 1, 0, 1]
