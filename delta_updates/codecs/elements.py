"""Numbers as bit patterns: an order in which neighbouring floats are neighbouring integers.

A float's pattern, read as an integer, counts up with its magnitude. Flipping negative patterns and setting the top bit
of the others makes one increasing sequence from -NaN over -0.0 and 0.0 to NaN. The map is a bijection on patterns, so
-0.0 and every NaN survive, and the difference of two ordered patterns counts the steps (ulps) between two floats.

Source: Herf, "Radix tricks" (2001), for the map; Lindstrom and Isenburg, "Fast and efficient compression of
floating-point data" (2006), for differences of ordered patterns.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Patterns = NDArray[np.unsignedinteger]


class ElementKind(IntEnum):
    """How bytes form numbers. Floats are known by name; anything else only by its width in bytes."""

    BYTES = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    FLOAT32 = 3
    WORDS2 = 4
    WORDS4 = 5
    WORDS8 = 6
    INT8 = 7
    NIBBLES = 8
    FLOAT8_E4M3 = 9
    FLOAT8_E5M2 = 10

    @property
    def width(self) -> int:
        """Bytes of one element; a pair of nibbles is one."""
        return _WIDTHS.get(self, 1)

    @property
    def is_float(self) -> bool:
        """Whether the patterns have the order of floats."""
        return self in FLOAT_FIELDS

    @property
    def has_steps(self) -> bool:
        """Whether values move by steps from their like in a source."""
        return self.is_float or self in {ElementKind.INT8, ElementKind.NIBBLES}


_WIDTHS = {
    ElementKind.FLOAT16: 2,
    ElementKind.BFLOAT16: 2,
    ElementKind.FLOAT32: 4,
    ElementKind.WORDS2: 2,
    ElementKind.WORDS4: 4,
    ElementKind.WORDS8: 8,
}


class FloatFields(NamedTuple):
    """How a float's bits are divided below its sign."""

    mantissa_bits: int
    exponent_bits: int

    @property
    def bias(self) -> int:
        """What is taken off an exponent field."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def highest_field(self) -> int:
        """The exponent field of infinities, where a format has them."""
        return (1 << self.exponent_bits) - 1


# IEEE 754-2019, bfloat16, and OCP "8-bit floating point" (2023).
FLOAT_FIELDS = {
    ElementKind.FLOAT16: FloatFields(10, 5),
    ElementKind.BFLOAT16: FloatFields(7, 8),
    ElementKind.FLOAT32: FloatFields(23, 8),
    ElementKind.FLOAT8_E4M3: FloatFields(3, 4),
    ElementKind.FLOAT8_E5M2: FloatFields(2, 5),
}
# By safetensors dtype, the most likely first. Integers of 4 bits travel two in a byte, and no dtype says so.
_KINDS_OF_DTYPE = {
    "F16": (ElementKind.FLOAT16,),
    "BF16": (ElementKind.BFLOAT16,),
    "F32": (ElementKind.FLOAT32,),
    "I8": (ElementKind.INT8,),
    "U8": (ElementKind.NIBBLES, ElementKind.INT8),
    "F8_E4M3": (ElementKind.FLOAT8_E4M3,),
    "F8_E4M3FNUZ": (ElementKind.FLOAT8_E4M3,),
    "F8_E5M2": (ElementKind.FLOAT8_E5M2,),
    "F8_E5M2FNUZ": (ElementKind.FLOAT8_E5M2,),
    "U16": (ElementKind.WORDS2,),
    "I16": (ElementKind.WORDS2,),
    "U32": (ElementKind.WORDS4,),
    "I32": (ElementKind.WORDS4,),
    "U64": (ElementKind.WORDS8,),
    "I64": (ElementKind.WORDS8,),
    "F64": (ElementKind.WORDS8,),
    "C64": (ElementKind.WORDS4,),
}


def element_kinds(dtype: str) -> tuple[ElementKind, ...]:
    """Return how values of a safetensors dtype may be treated; what we know nothing about passes as bytes."""
    return _KINDS_OF_DTYPE.get(dtype, (ElementKind.BYTES,))


def patterns_of(raw: bytes, kind: ElementKind) -> Patterns:
    """Return little-endian bytes as unsigned integers of the element's width, shape (n,)."""
    return np.frombuffer(raw, dtype=f"<u{kind.width}")


def ordered_from_patterns(patterns: Patterns) -> Patterns:
    """Return float patterns as integers in the floats' order, same shape and width."""
    # Without branches: all ones for negative patterns, the top bit alone for the others.
    flips = _zero_minus(patterns >> patterns.dtype.type(8 * patterns.itemsize - 1)) | _top(patterns)
    return patterns ^ flips


def patterns_from_ordered(ordered: Patterns) -> Patterns:
    """Undo `ordered_from_patterns`."""
    flips = ((ordered >> ordered.dtype.type(8 * ordered.itemsize - 1)) - ordered.dtype.type(1)) | _top(ordered)
    return ordered ^ flips


def zigzag(steps: Patterns) -> Patterns:
    """Return differences modulo 2^n as small numbers: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return (steps << steps.dtype.type(1)) ^ _zero_minus(steps >> steps.dtype.type(8 * steps.itemsize - 1))


def unzigzag(codes: Patterns) -> Patterns:
    """Undo `zigzag`."""
    one = codes.dtype.type(1)
    return (codes >> one) ^ _zero_minus(codes & one)


def contexts_of(old: Patterns, kind: ElementKind) -> NDArray[np.uint8]:
    """Return what governs how far each value moves, shape (n,): a float's exponent field, else the four upper bits.

    A float's steps are as long as its exponent says. Integers of one scale have no such law, but those near an end of
    their range move towards the middle. Flipping the top bit puts the negative ones before the others.
    """
    if not kind.is_float:
        return (old.astype(np.uint8) ^ np.uint8(0x80)) >> np.uint8(4)
    low, exponent_bits = FLOAT_FIELDS[kind]
    field = (old >> old.dtype.type(low)) & old.dtype.type((1 << exponent_bits) - 1)
    return field.astype(np.uint8)


def mantissa_bits(kind: ElementKind) -> int:
    """Return how many bits of a float lie below its exponent; integers have half of their own."""
    return FLOAT_FIELDS[kind].mantissa_bits if kind.is_float else 4 * kind.width


def steps_between(old: Patterns, new: Patterns, kind: ElementKind) -> Patterns:
    """Return how far each value moves as a small number (zigzag), same shape and width."""
    if kind is ElementKind.NIBBLES:
        low, high = (new - old) & _LOW_NIBBLE, (new & _HIGH_NIBBLE) - (old & _HIGH_NIBBLE)
        codes: Patterns = _NIBBLE_ZIGZAG.take(high | low)
        return codes
    if kind.is_float:
        return zigzag(ordered_from_patterns(new) - ordered_from_patterns(old))
    return zigzag(new - old)


def moved_by(old: Patterns, codes: Patterns, kind: ElementKind) -> Patterns:
    """Undo `steps_between`: return the new values."""
    if kind is ElementKind.NIBBLES:
        steps = _NIBBLE_UNZIGZAG.take(codes)
        return ((old + steps) & _LOW_NIBBLE) | ((old & _HIGH_NIBBLE) + (steps & _HIGH_NIBBLE))
    if kind.is_float:
        return patterns_from_ordered(ordered_from_patterns(old) + unzigzag(codes))
    return old + unzigzag(codes)


def _top(patterns: Patterns) -> np.unsignedinteger:
    return patterns.dtype.type(1 << (8 * patterns.itemsize - 1))


def _zero_minus(values: Patterns) -> Patterns:
    """Return the negative modulo 2^n: 0 stays, 1 becomes all ones."""
    return np.negative(values)


_LOW_NIBBLE, _HIGH_NIBBLE = np.uint8(0x0F), np.uint8(0xF0)
_ZIGZAG4 = np.array([2 * step if step < 8 else 31 - 2 * step for step in range(16)], dtype=np.uint8)  # noqa: PLR2004
# For both halves of a byte at once.
_NIBBLE_ZIGZAG: Patterns = (_ZIGZAG4[:, None] << np.uint8(4) | _ZIGZAG4).reshape(-1)
_NIBBLE_UNZIGZAG: Patterns = np.argsort(_NIBBLE_ZIGZAG).astype(np.uint8)
