"""Layout `classes`: every value is coded among those whose context is like its own.

The context of a value is something that the reader knows already (for a float its old exponent, which governs how many
steps it moves). Neighbouring contexts form classes; each class has streams of its own, so that zstd finds it an entropy
code of its own, and says how its symbols are split into bytes (`digits`). In a class of nearly nothing but zeros only
the others are coded, with the gaps between them. Where leading symbols would leave out more than they say (of weights
that were zero, and are not any more), the class is *wide*: its symbols are the values' highest bytes.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.digits import DIGITS, WHOLE, add_tails, digits_of, escapes, head_count, split
from delta_updates.codecs.elements import Patterns
from delta_updates.codecs.grouping import count_pairs, merge_neighbours
from delta_updates.codecs.information import UNIT_BITS, Counts, information
from delta_updates.codecs.leading import GAPS, VALUES
from delta_updates.codecs.places import Places, places_of
from delta_updates.codecs.streams import Streams
from delta_updates.errors import PackageFormatError

Contexts = NDArray[np.uint8] | NDArray[np.uint16]

_ENTRY = np.dtype([("first", "<u2"), ("mode", "u1"), ("coded", "<u4")])
_SPARSE = 0x80
_WIDE = 0x40
_GAP_WIDTH = 4
_MAX_CONTEXT = 0xFFFF
_RARE_SHARE = 8


@dataclass(frozen=True, slots=True)
class _Class:
    """Contexts from `first` to `last`; `coded` values have symbols, split with `radix`."""

    first: int
    last: int
    radix: int
    is_sparse: bool
    coded: int
    is_wide: bool = False

    @property
    def known_size(self) -> int | None:
        """How many values it has, where the package says so."""
        return None if self.is_sparse else self.coded

    def places(self, contexts: Contexts) -> Places:
        """Return where its values are."""
        number = contexts.dtype.type
        highest = int(np.iinfo(number).max)
        if self.first > highest:
            return np.zeros(0, dtype=np.intp)
        # One comparison: below `first` the difference wraps around.
        return places_of(contexts - number(self.first) <= number(min(self.last, highest) - self.first))


def arrange_classes(values: Patterns, contexts: Contexts) -> list[bytes]:
    """Return `values`, shape (n,), of at most 4 bytes, as streams; `contexts` has the same shape."""
    symbols = VALUES.symbols_of(values)
    counted = _choose_classes(symbols, contexts)
    places = _places([one for one, _ in counted], contexts)
    classes = [_widened(one, counts, values, where) for (one, counts), where in zip(counted, places, strict=True)]
    gaps: list[NDArray[np.uint32]] = []
    heads, tails, large, wide = [], [], [], []
    for one, where in zip(classes, places, strict=True):
        chosen = _tops(values.take(where)) if one.is_wide else symbols.take(where)
        if one.is_sparse:
            nonzero = places_of(chosen != 0)
            gaps.append(np.diff(nonzero, prepend=-1).astype(np.uint32) - np.uint32(1))
            chosen = chosen.take(nonzero) - np.uint8(1)
        head, tail = split(chosen, one.radix)
        heads.append(head.tobytes())
        tails.append(tail.tobytes())
        if one.is_wide:
            wide.append(where)
        else:
            coded = where.take(nonzero) if one.is_sparse else where
            large.append(coded.take(places_of(chosen >= VALUES.own - one.is_sparse)))
    rests = _joined(large)
    return [
        _table(classes),
        *_arrange_gaps(gaps),
        *heads,
        *tails,
        *VALUES.rest_streams(symbols.take(rests), values.take(rests)),
        *_low_planes(values.take(_joined(wide))),
    ]


def least_bytes(values: Patterns, contexts: Contexts) -> int:
    """Return about what the streams of `arrange_classes` are worth: the bytes of an entropy code for each context."""
    symbols = VALUES.symbols_of(values)
    counts = count_pairs(symbols, contexts)
    rest_bits = int((counts.sum(axis=0) * VALUES.rest_bits[: counts.shape[1]]).sum())
    return ((int(information(counts).sum()) >> UNIT_BITS) + rest_bits) // 8


def restore_classes(streams: Streams, contexts: Contexts, width: int) -> Patterns:
    """Return the values of `width` bytes that `arrange_classes` laid out, shape of `contexts`.

    Raises:
        PackageFormatError: The classes are not well-formed, or the streams do not fit them.
    """
    classes = _read_table(streams)
    places = _places(classes, contexts)
    for one, where in zip(classes, places, strict=True):
        if one.coded > len(where) or not (one.is_sparse or one.coded == len(where)):
            raise PackageFormatError(f"class codes {one.coded} values of {len(where)}")
    _restore_gaps(classes, places, streams)
    symbols = _restore_symbols(classes, streams)
    values = np.zeros(len(contexts), dtype=f"<u{width}")
    for is_wide in (False, True):
        chosen = [number for number, one in enumerate(classes) if one.is_wide == is_wide]
        parts = [symbols[number] for number in chosen]
        joined = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=np.uint8), *parts])
        coded = _add_low_planes(joined, streams, width) if is_wide else VALUES.values_of(joined, streams, width)
        start = 0
        for number in chosen:
            values[places[number]] = coded[start : start + len(places[number])]
            start += len(places[number])
    return values


def _joined(places: list[Places]) -> Places:
    return np.concatenate([np.zeros(0, dtype=np.intp), *places])


def _places(classes: list[_Class], contexts: Contexts) -> list[Places]:
    """Return where the values of each class are."""
    rare, among, limit = 0, 0, len(contexts) // _RARE_SHARE
    while rare < len(classes) - 1 and among + (classes[rare].known_size or len(contexts)) <= limit:
        among += classes[rare].known_size or 0
        rare += 1
    if rare < 2:  # noqa: PLR2004 - one class alone needs no pass less
        return [one.places(contexts) for one in classes]
    # Small weights have many exponents and few values: look for all of those at once, and for each only among them.
    below = _Class(0, classes[rare].first - 1, WHOLE, is_sparse=False, coded=among).places(contexts)
    few = contexts.take(below)
    return [below.take(one.places(few)) for one in classes[:rare]] + [one.places(contexts) for one in classes[rare:]]


def _choose_classes(symbols: NDArray[np.uint8], contexts: Contexts) -> list[tuple[_Class, Counts]]:
    """Return the classes, each with how often its symbols appear."""
    counts = count_pairs(symbols, contexts)
    used = np.flatnonzero(counts.any(axis=1)).tolist()
    merged = merge_neighbours(counts[used])
    firsts = [0, *(used[first] for first, _ in merged[1:])]
    lasts = [first - 1 for first in firsts[1:]] + [_MAX_CONTEXT]
    return [(_shape(first, last, group), group) for first, last, (_, group) in zip(firsts, lasts, merged, strict=True)]


def _shape(first: int, last: int, counts: Counts) -> _Class:
    """Choose how a class is coded from how often each of its symbols appears."""
    total, zeros = int(counts.sum()), int(counts[0])
    is_sparse = 4 * zeros >= 3 * total
    coded = counts[1:] if is_sparse else counts
    return _Class(first, last, _radix(coded), is_sparse, int(coded.sum()))


def _widened(one: _Class, counts: Counts, values: Patterns, where: Places) -> _Class:
    """Return the class, wide if that takes fewer bits than symbols that appear `counts` times, and rests."""
    low_bits = 8 * (values.itemsize - 1)
    if one.is_sparse or not low_bits or not len(where):
        return one
    rest_bits = int((counts * VALUES.rest_bits[: len(counts)]).sum())
    # A leading symbol says at least a little: only where it leaves out as much as the low bytes is there a choice.
    if rest_bits <= low_bits * len(where):
        return one
    tops = np.bincount(_tops(values.take(where)), minlength=256).astype(np.int64)
    narrow = int(information(counts)) + (rest_bits << UNIT_BITS)
    wide = int(information(tops)) + (low_bits * len(where) << UNIT_BITS)
    return replace(one, is_wide=True, radix=_radix(tops)) if wide < narrow else one


def _tops(values: Patterns) -> NDArray[np.uint8]:
    return (values >> values.dtype.type(8 * (values.itemsize - 1))).astype(np.uint8)


def _low_planes(values: Patterns) -> list[bytes]:
    """Return all bytes but the highest, lowest first, each as a stream."""
    return [(values >> values.dtype.type(8 * place)).astype(np.uint8).tobytes() for place in range(values.itemsize - 1)]


def _add_low_planes(tops: NDArray[np.uint8], streams: Streams, width: int) -> Patterns:
    number = np.dtype(f"<u{width}")
    values: Patterns = tops.astype(number) << number.type(8 * (width - 1))
    for place in range(width - 1):
        values |= streams.take(len(tops)).astype(number) << number.type(8 * place)
    return values


def _radix(counts: Counts) -> int:
    """Return the radix that codes such symbols in the fewest bytes, as measured on normal steps of all widths."""
    total, zeros, ones = int(counts.sum()), int(counts[:1].sum()), int(counts[1:2].sum())
    if 10 * (zeros + ones) >= 9 * total or 10 * zeros >= 7 * total:
        return 3
    if 10 * zeros >= 4 * total:
        return 6
    return 16 if 20 * zeros >= 3 * total else WHOLE


def _table(classes: list[_Class]) -> bytes:
    entries = [(one.first, one.radix | one.is_sparse * _SPARSE | one.is_wide * _WIDE, one.coded) for one in classes]
    return bytes([len(classes)]) + np.array(entries, dtype=_ENTRY).tobytes()


def _read_table(streams: Streams) -> list[_Class]:
    count = int(streams.take(1)[0])
    entries = streams.take(count * _ENTRY.itemsize).view(_ENTRY).tolist()
    firsts = [first for first, _, _ in entries]
    if firsts[:1] != [0] or any(left >= right for left, right in pairwise(firsts)):
        raise PackageFormatError(f"classes begin at contexts {firsts}, which do not increase from 0")
    lasts = [first - 1 for first in firsts[1:]] + [_MAX_CONTEXT]
    classes = [
        _Class(first, last, mode & ~(_SPARSE | _WIDE), bool(mode & _SPARSE), coded, bool(mode & _WIDE))
        for (first, mode, coded), last in zip(entries, lasts, strict=True)
    ]
    if any(one.radix not in DIGITS for one in classes):
        raise PackageFormatError(f"classes use radices {sorted({one.radix for one in classes})}; {list(DIGITS)} exist")
    if any(one.is_wide and one.is_sparse for one in classes):
        raise PackageFormatError("a sparse class cannot be wide")
    return classes


def _arrange_gaps(gaps: list[NDArray[np.uint32]]) -> list[bytes]:
    """Return the leading symbols, with a stream and so an entropy code for each class, and rests of all gaps."""
    symbols = [GAPS.symbols_of(one) for one in gaps]
    if not gaps:
        return []
    rests = GAPS.rest_streams(np.concatenate(symbols), np.concatenate(gaps))
    return [one.tobytes() for one in symbols] + rests


def _restore_gaps(classes: list[_Class], places: list[Places], streams: Streams) -> None:
    """Keep of each sparse class the places that are coded."""
    symbols = streams.take(sum(one.coded for one in classes if one.is_sparse))
    gaps = GAPS.values_of(symbols, streams, _GAP_WIDTH)
    start = 0
    for number, one in enumerate(classes):
        if not one.is_sparse:
            continue
        ranks = np.cumsum(gaps[start : start + one.coded].astype(np.int64) + 1) - 1
        if one.coded and int(ranks[-1]) >= len(places[number]):
            raise PackageFormatError(f"gaps reach value {int(ranks[-1])} of a class of {len(places[number])}")
        places[number] = places[number].take(ranks)
        start += one.coded


def _restore_symbols(classes: list[_Class], streams: Streams) -> list[NDArray[np.uint8]]:
    digits = [digits_of(streams.take(head_count(one.coded, one.radix)), one.coded, one.radix) for one in classes]
    for number, one in enumerate(classes):
        where = escapes(digits[number], one.radix)
        if len(where):
            add_tails(digits[number], where, streams.take(len(where)))
        if one.is_sparse and one.coded:
            if int(digits[number].max()) == np.iinfo(np.uint8).max:
                raise PackageFormatError("symbol above 255 in a sparse class")
            digits[number] = digits[number] + np.uint8(1)
    return digits
