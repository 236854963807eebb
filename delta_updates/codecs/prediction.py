"""Where a float goes when a real number is added to it, and how sure that is: the same on every machine.

The sum is one operation of IEEE 754 in a format with more bits than the values have; all else is done on whole numbers.
Changes are so large, or zero, that a processor which takes subnormal numbers for zero comes to the same.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.elements import FLOAT_FIELDS, ElementKind, FloatFields, Patterns
from delta_updates.codecs.factors import Reals
from delta_updates.codecs.places import places_of

# What is rounded off is known by its first bits.
_FRACTION_BITS = 13
_FRACTIONS = 1 << _FRACTION_BITS
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
        self.half = self.number(1 << (int(self.dropped) - 1))
        self.sign = self.number(1 << (8 * np.dtype(self.number).itemsize - 1))
        # Patterns of normal values, and how many of them there are.
        self.lowest = self.number(1 << self.fields.mantissa_bits)
        self.normal = self.number((self.fields.highest_field - 1) << self.fields.mantissa_bits)


_FLOAT64 = FloatFields(52, 11)
_FORMATS = {kind: _Format(kind) for kind in (ElementKind.FLOAT16, ElementKind.BFLOAT16, ElementKind.FLOAT32)}


def _nearness_table() -> NDArray[np.uint8]:
    """Return for each fraction how near the boundary is, in octaves; 8 more where it is rounded down."""
    fractions, half = np.arange(_FRACTIONS), _FRACTIONS // 2
    distances = np.where(fractions < half, half - fractions, fractions - half + 1)
    octaves = _FRACTION_BITS - 1 - np.floor(np.log2(distances)).astype(np.int64)
    is_down = fractions < half
    return (np.clip(octaves - 1, 0, _NEAREST) + is_down * (_NEAREST + 1)).astype(np.uint8)


_NEARNESS = _nearness_table()
_SIGN_AND_MAGNITUDE = np.uint32(0x8FFFE000).view(np.int32)


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
    bits = patterns.view(np.int16).astype(np.int32)
    # The sign is where it belongs already; what widening repeated of it goes, and the exponent gets its new bias.
    bits <<= np.int32(13)
    bits &= _SIGN_AND_MAGNITUDE
    bits += np.int32((127 - 15) << 23)
    reals: NDArray[np.float32] = bits.view(np.float32)
    # The lowest exponent and the highest: one more makes them 1 and 0.
    rare = places_of((patterns + np.uint16(1 << 10)) & np.uint16(0x7800) == 0)
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
    sums: Patterns = (reals_of(old, kind) + change).view(form.number)
    is_negative = sums >= form.sign
    counted: Patterns = sums & ~form.sign
    counted += form.half
    counted >>= form.dropped
    # Below zero where the sum is too small for the format: then it wraps around.
    counted -= form.rebias
    signs = is_negative.astype(old.dtype) << old.dtype.type(8 * kind.width - 1)
    patterns = counted.astype(old.dtype) | signs
    nearness = _NEARNESS.take(sums >> (form.dropped - form.number(_FRACTION_BITS)) & form.number(_FRACTIONS - 1))
    contexts = _contexts(counted, nearness & np.uint8(_NEAREST), kind)
    is_next_above = (nearness > _NEAREST) ^ is_negative
    # What is not normal: of these the sum's last bits say nothing, and may differ between machines.
    special = places_of(counted - form.lowest >= form.normal)
    if len(special):
        contexts[special], is_next_above[special] = 0, False
        beyond = counted.take(special)
        is_large = (beyond > form.lowest) & (beyond < form.sign)
        patterns[special] = np.where(is_large, old.take(special), signs.take(special))
    return Prediction(patterns, contexts, is_next_above)


def _contexts(counted: Patterns, away: NDArray[np.uint8], kind: ElementKind) -> NDArray[np.uint8]:
    """Return how far the boundary lies in the values' own units, which says most, and in steps."""
    fields: NDArray[np.uint8] = (counted >> counted.dtype.type(FLOAT_FIELDS[kind].mantissa_bits)).astype(np.uint8)
    lowest = FLOAT_FIELDS[kind].bias + _LOWEST_EXPONENT
    fields += np.uint8(max(-lowest, 0))
    floor = away + np.uint8(max(lowest, 0))
    octaves = np.maximum(fields, floor)
    octaves -= floor
    # NumPy compares two arrays ten times as fast as an array and a number.
    np.minimum(octaves, np.full_like(octaves, _EXPONENT_CONTEXTS - 1), out=octaves)
    contexts: NDArray[np.uint8] = octaves << np.uint8(2)
    contexts |= away >> np.uint8(1)
    return contexts
