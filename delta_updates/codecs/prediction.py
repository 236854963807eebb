"""Where a float goes when a real number is added to it, and how sure that is: the same on every machine.

The sum is one operation of IEEE 754 in a format with more bits than the values have; all else is done on whole numbers.
Changes are so large, or zero, that a processor which takes subnormal numbers for zero comes to the same.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.elements import FLOAT_FIELDS, ElementKind, Patterns
from delta_updates.codecs.factors import Reals

# What is rounded off is known by its first bits.
_FRACTION_BITS = 13
_EXPONENT_CONTEXTS = 32
# Exponents from 2 ** -28 have contexts of their own: those of weights.
_LOWEST_EXPONENT = -28
# How near the boundary to the next value is, in octaves: 0 is a quarter of a step and more.
_NEAREST = 7


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted values, each of shape (n,).

    Attributes:
        patterns: The values.
        contexts: Exponent and nearness of the value that would have been next best.
        is_next_above: Whether that is the next higher one.
    """

    patterns: Patterns
    contexts: NDArray[np.uint8]
    is_next_above: NDArray[np.bool_]


class _Format:
    """How values of a kind are rounded from the format their sums have."""

    def __init__(self, kind: ElementKind) -> None:
        self.fields = FLOAT_FIELDS[kind]
        self.wide = FLOAT_FIELDS[ElementKind.FLOAT32] if kind.width == 2 else _FLOAT64  # noqa: PLR2004 - bytes
        self.number: Final = np.uint32 if kind.width == 2 else np.uint64  # noqa: PLR2004
        self.dropped = self.number(self.wide.mantissa_bits - self.fields.mantissa_bits)
        self.rebias = self.number((self.wide.bias - self.fields.bias) << self.fields.mantissa_bits)


_FLOAT64 = type(FLOAT_FIELDS[ElementKind.FLOAT32])(52, 11)
_FORMATS = {kind: _Format(kind) for kind in (ElementKind.FLOAT16, ElementKind.BFLOAT16, ElementKind.FLOAT32)}


def _nearness_table() -> NDArray[np.uint8]:
    """Return for each fraction how near the boundary is, in octaves; 8 more where it is rounded down."""
    fractions = np.arange(1 << _FRACTION_BITS)
    half = 1 << (_FRACTION_BITS - 1)
    distances = np.where(fractions < half, half - fractions, fractions - half + 1)
    octaves = _FRACTION_BITS - 1 - np.floor(np.log2(distances)).astype(np.int64)
    is_down = fractions < half
    return (np.clip(octaves - 1, 0, _NEAREST) + is_down * (_NEAREST + 1)).astype(np.uint8)


_NEARNESS = _nearness_table()


def reals_of(patterns: Patterns, kind: ElementKind) -> Reals:
    """Return the values of float patterns, exactly, in the format of sums; zero for subnormal BFLOAT16 and FLOAT32.

    Those are so small that some processors take them for zero anyway, and others do not.
    """
    if kind is ElementKind.FLOAT16:
        return _float32_of(patterns)
    normal = patterns.dtype.type(FLOAT_FIELDS[kind].highest_field << FLOAT_FIELDS[kind].mantissa_bits)
    flushed = np.where(patterns & normal, patterns, patterns.dtype.type(0))
    if kind is ElementKind.BFLOAT16:
        return (flushed.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return flushed.view(np.float32).astype(np.float64)


def _float32_of(patterns: Patterns) -> NDArray[np.float32]:
    """Return float16 as float32. NumPy's own conversion takes ten times as long."""
    magnitudes = (patterns & np.uint16(0x7FFF)).astype(np.uint32) << np.uint32(13)
    bits = magnitudes + np.uint32((127 - 15) << 23)
    rare = np.flatnonzero((magnitudes < np.uint32(1 << 23)) | (magnitudes >= np.uint32(31 << 23)))
    bits |= (patterns & np.uint16(0x8000)).astype(np.uint32) << np.uint32(16)
    reals: NDArray[np.float32] = bits.view(np.float32)
    if len(rare):
        reals[rare] = patterns.take(rare).view(np.float16).astype(np.float32)
    return reals


def format_of_sums(kind: ElementKind) -> type[np.float32 | np.float64]:
    """Return the type that sums of such values are rounded to first."""
    return np.float32 if kind.width == 2 else np.float64  # noqa: PLR2004 - bytes


def predict(old: Patterns, change: Reals, kind: ElementKind) -> Prediction:
    """Return the values nearest to old + change; zero where that is not normal, the old values where it is not finite.

    Args:
        old: The source's values, shape (n,).
        change: What is added to each, in the format of `reals_of`, shape (n,); zero or at least 2 ** -90.
        kind: Of the values: FLOAT16, BFLOAT16 or FLOAT32.
    """
    form = _FORMATS[kind]
    number, bits = form.number, form.fields.mantissa_bits
    sums: Patterns = (reals_of(old, kind) + change).view(number)
    sign_place = number(8 * sums.itemsize - 1)
    negative = sums >> sign_place
    magnitudes = sums ^ (negative << sign_place)
    rounded = (magnitudes + (number(1) << (form.dropped - number(1)))) >> form.dropped
    is_small = rounded < form.rebias + number(1 << bits)
    counted = rounded - form.rebias
    counted *= ~is_small
    patterns = counted.astype(old.dtype) | negative.astype(old.dtype) << old.dtype.type(8 * kind.width - 1)
    fraction = magnitudes >> (form.dropped - number(_FRACTION_BITS)) & number((1 << _FRACTION_BITS) - 1)
    nearness = _NEARNESS.take(fraction)
    contexts = _contexts(counted, nearness & np.uint8(_NEAREST), kind)
    is_next_above = (nearness > _NEAREST) ^ negative.astype(np.bool_)
    highest = form.fields.highest_field << bits
    is_kept = (counted >= number(highest)) | (old & old.dtype.type(highest) == old.dtype.type(highest))
    # Of these, what the sum was says nothing, and may differ between machines.
    special = np.flatnonzero(is_small | is_kept)
    if len(special):
        contexts[special], is_next_above[special] = 0, False
        patterns[is_kept] = old[is_kept]
    return Prediction(patterns, contexts, is_next_above)


def _contexts(counted: Patterns, away: NDArray[np.uint8], kind: ElementKind) -> NDArray[np.uint8]:
    """Return how far the boundary lies in the values' own units, which says most, and in steps."""
    fields = (counted >> counted.dtype.type(FLOAT_FIELDS[kind].mantissa_bits)).astype(np.int16)
    octaves = fields - np.int16(FLOAT_FIELDS[kind].bias + _LOWEST_EXPONENT) - away
    contexts: NDArray[np.uint8] = np.clip(octaves, 0, _EXPONENT_CONTEXTS - 1).astype(np.uint8) << np.uint8(2)
    contexts |= away >> np.uint8(1)
    return contexts
