"""Codec `full`: the chunk without any source."""

import numpy as np

from delta_updates.codecs.codec import Encoded
from delta_updates.codecs.elements import (
    ElementKind,
    Patterns,
    ordered_from_patterns,
    patterns_from_ordered,
    patterns_of,
    unzigzag,
    zigzag,
)
from delta_updates.codecs.frames import pack, unpack
from delta_updates.codecs.layouts import Layout, arrange, restore


class Full:
    """Raw bytes, or byte planes: of words, and of floats as steps from zero (the sign moves below the mantissa)."""

    def encode(self, target: bytes, source: bytes, kind: ElementKind) -> Encoded | None:
        """Return the smaller of both layouts."""
        del source
        choices = [(Layout.RAW, [target])]
        if kind.width > 1:
            choices.append((Layout.BYTES, arrange(_distances(patterns_of(target, kind), kind), Layout.BYTES)))
        candidates = [Encoded(layout, len(target), pack(streams)) for layout, streams in choices]
        return min(candidates, key=lambda candidate: len(candidate.frame))

    def decode(self, encoded: Encoded, source: bytes, kind: ElementKind, length: int) -> bytes:
        """Return the chunk; `source` is not looked at."""
        del source
        plain = unpack(encoded.frame, encoded.plain_length)
        values = restore(plain, length // kind.width, kind.width, encoded.layout)
        return values.tobytes() if encoded.layout is Layout.RAW else _undo_distances(values, kind).tobytes()


def _zero(patterns: Patterns) -> Patterns:
    return ordered_from_patterns(np.zeros(1, dtype=patterns.dtype))


def _distances(patterns: Patterns, kind: ElementKind) -> Patterns:
    return zigzag(ordered_from_patterns(patterns) - _zero(patterns)) if kind.is_float else patterns


def _undo_distances(values: Patterns, kind: ElementKind) -> Patterns:
    return patterns_from_ordered(unzigzag(values) + _zero(values)) if kind.is_float else values
