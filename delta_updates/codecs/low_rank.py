"""Codec `low_rank`: a matrix that moved by a product of two thin matrices, as merging an adapter does.

The factors travel, the device adds their product to its own values and rounds as its floats do, and what the guess
misses is coded as steps. Most that it misses lies where the sum fell close to the boundary between two floats; that
closeness is known to the device, so it is the context of a step, and steps are counted towards the nearer neighbour.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), for what moves weights so.
"""

import numpy as np

from delta_updates.codecs.classes import arrange_classes, restore_classes
from delta_updates.codecs.codec import MAX_CHUNK_ELEMENTS, MAX_PLAIN_BYTES, Encoded
from delta_updates.codecs.elements import (
    ElementKind,
    Patterns,
    ordered_from_patterns,
    patterns_from_ordered,
    patterns_of,
    unzigzag,
    zigzag,
)
from delta_updates.codecs.factors import Factors, read_factors
from delta_updates.codecs.fitting import find_factors
from delta_updates.codecs.frames import ENTROPY_LEVEL, pack, unpack
from delta_updates.codecs.layouts import Layout
from delta_updates.codecs.prediction import Prediction, format_of_sums, predict
from delta_updates.codecs.streams import Streams
from delta_updates.errors import PackageFormatError

LOW_RANK_KINDS = frozenset({ElementKind.FLOAT16, ElementKind.BFLOAT16, ElementKind.FLOAT32})
# Predicted at a time: what it needs stays in the cache.
_STRIP_ELEMENTS = 1 << 17


class LowRank:
    """A product of thin factors, and steps from where it leads."""

    def encode(self, target: bytes, source: bytes, kind: ElementKind, *, columns: int = 0) -> Encoded | None:
        """Return factors and steps; None where no product of thin factors explains much of what moved.

        Args:
            target: The chunk: whole rows of a matrix.
            source: As many bytes.
            kind: How the bytes form numbers.
            columns: Elements of a row; zero when it is not a matrix.
        """
        elements = len(target) // kind.width
        if kind not in LOW_RANK_KINDS or len(source) != len(target) or elements > MAX_CHUNK_ELEMENTS:
            return None
        if columns == 0 or elements % columns:
            return None
        old, new = patterns_of(source, kind), patterns_of(target, kind)
        factors = find_factors(old, new, kind, columns=columns)
        if factors is None:
            return None
        guess = _predict(old, factors, kind)
        streams = [*factors.to_streams(), *arrange_classes(_codes(guess, new), guess.contexts)]
        length = sum(map(len, streams))
        if length > MAX_PLAIN_BYTES:
            return None
        return Encoded(Layout.CLASSES, length, pack(streams, level=ENTROPY_LEVEL))

    def decode(self, encoded: Encoded, source: bytes, kind: ElementKind, length: int) -> bytes:
        """Return the source moved by the factors' product and the payload's steps."""
        elements = length // kind.width
        if kind not in LOW_RANK_KINDS or len(source) != length or encoded.layout is not Layout.CLASSES:
            raise PackageFormatError(f"low rank of {length} bytes needs floats, classes and as long a source")
        if not 0 < elements <= MAX_CHUNK_ELEMENTS:
            raise PackageFormatError(f"low rank of {elements} values; 1 to {MAX_CHUNK_ELEMENTS} are allowed")
        streams = Streams(unpack(encoded.frame, encoded.plain_length))
        guess = _predict(patterns_of(source, kind), read_factors(streams, elements), kind)
        codes = restore_classes(streams, guess.contexts, kind.width)
        streams.finish()
        return _moved(guess, codes).tobytes()


def _predict(old: Patterns, factors: Factors, kind: ElementKind) -> Prediction:
    whole = Prediction(np.empty_like(old), np.empty(len(old), np.uint8), np.empty(len(old), np.bool_))
    start, rows = 0, max(_STRIP_ELEMENTS // len(factors.right), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for change in factors.product(rows=rows, number=format_of_sums(kind)):
            where = slice(start, start + len(change))
            strip = predict(old[where], change, kind)
            whole.patterns[where], whole.contexts[where] = strip.patterns, strip.contexts
            whole.is_next_above[where] = strip.is_next_above
            start += len(change)
    return whole


def _codes(guess: Prediction, new: Patterns) -> Patterns:
    # One step down has the code 1: so has one towards the neighbour that was nearly as likely.
    return zigzag(_turned(ordered_from_patterns(new) - ordered_from_patterns(guess.patterns), guess))


def _moved(guess: Prediction, codes: Patterns) -> Patterns:
    return patterns_from_ordered(ordered_from_patterns(guess.patterns) + _turned(unzigzag(codes), guess))


def _turned(steps: Patterns, guess: Prediction) -> Patterns:
    """Return steps up as steps down where the next value is above, and the reverse."""
    ones = np.negative(guess.is_next_above.astype(steps.dtype))
    return (steps ^ ones) - ones
