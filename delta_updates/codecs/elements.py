"""Numbers as bit patterns: an order in which neighbouring floats are neighbouring integers.

A float's pattern, read as an integer, counts up with its magnitude. Flipping negative patterns and setting the top bit
of the others makes one increasing sequence from -NaN over -0.0 and 0.0 to NaN. The map is a bijection on patterns, so
-0.0 and every NaN survive, and the difference of two ordered patterns counts the steps (ulps) between two floats.

Source: Herf, "Radix tricks" (2001), for the map; Lindstrom and Isenburg, "Fast and efficient compression of
floating-point data" (2006), for differences of ordered patterns.
"""

from enum import IntEnum

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

    @property
    def width(self) -> int:
        """Bytes of one element."""
        return _WIDTHS[self]

    @property
    def is_float(self) -> bool:
        """Whether the patterns have the order of floats."""
        return self in _EXPONENTS


_WIDTHS = {
    ElementKind.BYTES: 1,
    ElementKind.FLOAT16: 2,
    ElementKind.BFLOAT16: 2,
    ElementKind.FLOAT32: 4,
    ElementKind.WORDS2: 2,
    ElementKind.WORDS4: 4,
    ElementKind.WORDS8: 8,
}
# (bits of the mantissa, bits of the exponent), IEEE 754-2019 and bfloat16
_EXPONENTS = {ElementKind.FLOAT16: (10, 5), ElementKind.BFLOAT16: (7, 8), ElementKind.FLOAT32: (23, 8)}
_KIND_OF_DTYPE = {"F16": ElementKind.FLOAT16, "BF16": ElementKind.BFLOAT16, "F32": ElementKind.FLOAT32}
_WORDS_OF_DTYPE = {
    "U16": ElementKind.WORDS2,
    "I16": ElementKind.WORDS2,
    "U32": ElementKind.WORDS4,
    "I32": ElementKind.WORDS4,
    "U64": ElementKind.WORDS8,
    "I64": ElementKind.WORDS8,
    "F64": ElementKind.WORDS8,
    "C64": ElementKind.WORDS4,
}


def element_kind(dtype: str) -> ElementKind:
    """Return how values of a safetensors dtype are treated; what we know nothing about passes as bytes."""
    return _KIND_OF_DTYPE.get(dtype) or _WORDS_OF_DTYPE.get(dtype) or ElementKind.BYTES


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


def exponents(patterns: Patterns, kind: ElementKind) -> NDArray[np.uint8]:
    """Return each float's exponent field, shape (n,)."""
    mantissa_bits, exponent_bits = _EXPONENTS[kind]
    field = (patterns >> patterns.dtype.type(mantissa_bits)) & patterns.dtype.type((1 << exponent_bits) - 1)
    return field.astype(np.uint8)


def _top(patterns: Patterns) -> np.unsignedinteger:
    return patterns.dtype.type(1 << (8 * patterns.itemsize - 1))


def _zero_minus(values: Patterns) -> Patterns:
    """Return the negative modulo 2^n: 0 stays, 1 becomes all ones."""
    return np.negative(values)
