"""Codec `difference`: how many representable steps each value moved.

How far a weight moves, counted in steps, is governed by the exponent of its old value, and the device has the old
value. So each step is coded among those of like exponents (layout CLASSES), which costs nothing to say: the decoder
finds the same classes in its source. Small tensors that share a chunk may move in ways of their own; then the payload
says which parts of the chunk go together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.classes import Contexts, arrange_classes, least_bytes, restore_classes
from delta_updates.codecs.codec import MAX_DIFFERENCE_ELEMENTS, MAX_PLAIN_BYTES, Encoded
from delta_updates.codecs.elements import (
    ElementKind,
    Patterns,
    contexts_of,
    moved_by,
    patterns_of,
    steps_between,
)
from delta_updates.codecs.frames import ENTROPY_LEVEL, pack, unpack
from delta_updates.codecs.grouping import count_pairs, merge_alike
from delta_updates.codecs.layouts import Layout, restore
from delta_updates.codecs.leading import VALUES
from delta_updates.codecs.streams import Streams
from delta_updates.errors import PackageFormatError

_COUNT_BYTES = 2
_MAX_SECTIONS = (1 << 8 * _COUNT_BYTES) - 1
_MAX_GROUPS = 16


@dataclass(frozen=True, slots=True)
class Section:
    """So many neighbouring elements of a chunk; sections of one `name` are expected to move alike."""

    elements: int
    name: str


class Difference:
    """Steps between values, in classes of the source's exponents."""

    def encode(
        self, target: bytes, source: bytes, kind: ElementKind, *, sections: Sequence[Section] = ()
    ) -> Encoded | None:
        """Return the steps; None when there is no value in the source for each of the target.

        Args:
            target: The chunk.
            source: As many bytes.
            kind: How the bytes form numbers.
            sections: What the chunk consists of, where that is known.
        """
        if not kind.has_steps or len(target) != len(source) or not 0 < len(target) <= _max_bytes(kind):
            return None
        old = patterns_of(source, kind)
        codes = steps_between(old, patterns_of(target, kind), kind)
        groups = _choose_groups(codes, contexts_of(old, kind), sections)
        table = _write_sections(sections if groups else (), groups)
        streams = [*table, *arrange_classes(codes, _contexts(old, kind, sections, groups))]
        length = sum(map(len, streams))
        if length > MAX_PLAIN_BYTES:
            return None
        return Encoded(Layout.CLASSES, length, pack(streams, level=ENTROPY_LEVEL))

    def least_bytes(self, target: bytes, source: bytes, kind: ElementKind) -> int:
        """Return about how many bytes the steps take at least, at a small part of the cost of finding out."""
        old = patterns_of(source, kind)
        return least_bytes(steps_between(old, patterns_of(target, kind), kind), contexts_of(old, kind))

    def decode(self, encoded: Encoded, source: bytes, kind: ElementKind, length: int) -> bytes:
        """Return the source moved by the payload's steps."""
        if not kind.has_steps or len(source) != length or encoded.layout is Layout.RAW:
            raise PackageFormatError(f"a difference of {length} bytes needs values, a layout and as long a source")
        if encoded.layout is Layout.CLASSES and length > _max_bytes(kind):
            raise PackageFormatError(f"a difference of {length} bytes; at most {_max_bytes(kind)} have classes")
        old = patterns_of(source, kind)
        plain = unpack(encoded.frame, encoded.plain_length)
        codes = _codes(plain, old, kind) if encoded.layout is Layout.CLASSES else _sorted(plain, old, kind, encoded)
        return moved_by(old, codes, kind).tobytes()


def _max_bytes(kind: ElementKind) -> int:
    return MAX_DIFFERENCE_ELEMENTS * kind.width


def _codes(plain: bytes, old: Patterns, kind: ElementKind) -> Patterns:
    streams = Streams(plain)
    sections, groups = _read_sections(streams, len(old))
    codes = restore_classes(streams, _contexts(old, kind, sections, groups), kind.width)
    streams.finish()
    return codes


def _sorted(plain: bytes, old: Patterns, kind: ElementKind, encoded: Encoded) -> Patterns:
    """Return the codes of format 1: all together, sorted by the exponent."""
    if not kind.is_float:
        raise PackageFormatError(f"layout {encoded.layout.name} cannot sort values of kind {kind.name}")
    sorted_codes = restore(plain, len(old), kind.width, encoded.layout)
    codes = np.empty_like(sorted_codes)
    codes[np.argsort(contexts_of(old, kind), kind="stable")] = sorted_codes
    return codes


def _contexts(old: Patterns, kind: ElementKind, sections: Sequence[Section], groups: Sequence[int]) -> Contexts:
    contexts = contexts_of(old, kind)
    if not groups:
        return contexts
    lengths = [section.elements for section in sections]
    return np.repeat(np.array(groups, dtype=np.uint16) << np.uint16(8), lengths) | contexts


def _choose_groups(codes: Patterns, contexts: NDArray[np.uint8], sections: Sequence[Section]) -> list[int]:
    """Return a group for each section; none at all when they all move alike."""
    names = list(dict.fromkeys(section.name for section in sections))
    if not 1 < len(names) <= _MAX_GROUPS or len(sections) > _MAX_SECTIONS:
        return []
    kinds = np.array([names.index(section.name) for section in sections], dtype=np.uint16)
    joint = np.repeat(kinds << np.uint16(8), [section.elements for section in sections]) | contexts
    counts = count_pairs(VALUES.symbols_of(codes), joint)
    padded = np.zeros((len(names) << 8, counts.shape[1]), dtype=np.int64)
    padded[: len(counts)] = counts
    by_name = padded.reshape(len(names), 256, -1)
    of_name = merge_alike(by_name[:, by_name.any(axis=(0, 2))])
    return [of_name[names.index(section.name)] for section in sections] if any(of_name) else []


def _write_sections(sections: Sequence[Section], groups: Sequence[int]) -> list[bytes]:
    lengths = np.array([section.elements for section in sections], dtype="<u4")
    return [len(sections).to_bytes(_COUNT_BYTES, "little"), lengths.tobytes(), bytes(groups)]


def _read_sections(streams: Streams, count: int) -> tuple[list[Section], list[int]]:
    sections = int.from_bytes(streams.take(_COUNT_BYTES).tobytes(), "little")
    lengths = streams.take(4 * sections).view("<u4").tolist()
    groups = streams.take(sections).tolist()
    if sections and sum(lengths) != count:
        raise PackageFormatError(f"sections hold {sum(lengths)} values; the chunk has {count}")
    return [Section(length, "") for length in lengths], groups
