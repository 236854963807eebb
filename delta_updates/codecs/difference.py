"""Codec `difference`: how many representable steps each float moved.

How far a weight moves, counted in steps, is governed by the exponent of its old value, and the device has the old
value. So the steps are sorted by that exponent before they are arranged: the stream becomes nearly stationary, and the
order costs nothing, because the decoder finds the same permutation from its source.
"""

from itertools import starmap

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.codec import Encoded
from delta_updates.codecs.elements import (
    ElementKind,
    Patterns,
    exponents,
    ordered_from_patterns,
    patterns_from_ordered,
    patterns_of,
    unzigzag,
    zigzag,
)
from delta_updates.codecs.frames import pack, unpack
from delta_updates.codecs.layouts import Layout, arrange, restore
from delta_updates.errors import PackageFormatError

# Byte planes were never the smallest in any pair we measured.
_LAYOUTS = (Layout.BITS, Layout.LEADING)


class Difference:
    """Steps between floats, sorted by the source's exponent."""

    def encode(self, target: bytes, source: bytes, kind: ElementKind) -> Encoded | None:
        """Return the smaller of two layouts; None when there is no float in the source for each of the target."""
        if not kind.is_float or len(target) != len(source):
            return None
        old = patterns_of(source, kind)
        steps = ordered_from_patterns(patterns_of(target, kind)) - ordered_from_patterns(old)
        codes = zigzag(steps)[_by_exponent(old, kind)]
        candidates = starmap(_encoded, ((layout, arrange(codes, layout)) for layout in _LAYOUTS))
        return min(candidates, key=lambda candidate: len(candidate.frame))

    def decode(self, encoded: Encoded, source: bytes, kind: ElementKind, length: int) -> bytes:
        """Return the source moved by the payload's steps."""
        if not kind.is_float or len(source) != length or encoded.layout is Layout.RAW:
            raise PackageFormatError(
                f"a difference of {length} bytes needs floats, a layout and a source of its length"
            )
        old = patterns_of(source, kind)
        plain = unpack(encoded.frame, encoded.plain_length)
        codes = restore(plain, len(old), kind.width, encoded.layout)
        steps = np.empty_like(codes)
        steps[_by_exponent(old, kind)] = unzigzag(codes)
        return patterns_from_ordered(ordered_from_patterns(old) + steps).tobytes()


def _by_exponent(old: Patterns, kind: ElementKind) -> NDArray[np.intp]:
    return np.argsort(exponents(old, kind), kind="stable")


def _encoded(layout: Layout, streams: list[bytes]) -> Encoded:
    return Encoded(layout, sum(map(len, streams)), pack(streams))
