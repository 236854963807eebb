"""Which tensor of the source each tensor of a target comes from, although names and shapes may have changed.

The tensor of the same name is the first choice, and a reshaped one or one that gained or lost rows is still the same
(`rows` finds which). A tensor whose name is new, or whose content has moved to another name (a layer was taken out,
and all that followed were renumbered), is looked for by a sample of its values.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.elements import element_kinds, mantissa_bits, patterns_of, steps_between
from delta_updates.reading import PIECE_BYTES, OldBytes, RandomReader
from delta_updates.rows import align_rows
from delta_updates.tensor_file import Tensor, TensorFile

_SAMPLE_BYTES = 4096
# So many tensors of one shape are compared at most: those nearest in the file.
_MAX_COMPARED = 64
# Values of each row that are looked at, and the most rows and blocks that are worth it.
_ROW_VALUES = 8
_MAX_ROWS = 1 << 18
_MAX_BLOCKS = 2000


@dataclass(frozen=True, slots=True)
class Like:
    """`length` bytes from `start` of a tensor resemble those at `offset` of the source's file; None: nothing there."""

    start: int
    length: int
    offset: int | None


class TensorMatcher:
    """Finds likes in one source file."""

    def __init__(self, old: TensorFile, old_file: OldBytes, new_file: RandomReader) -> None:
        self._old_file = old_file
        self._new_file = new_file
        # Of several of one name, as in files that are joined, the first.
        self._by_name = {tensor.name: tensor for tensor in reversed(old.tensors)}
        self._by_shape: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
        for tensor in old.tensors:
            self._by_shape.setdefault((tensor.dtype, tensor.shape), []).append(tensor)

    def likes(self, tensor: Tensor) -> list[Like]:
        """Return where the source has what most resembles `tensor`, in order; together they make all of it.

        Whether that is near enough to be of use is not decided here: the builder measures.
        """
        old = self._like(tensor)
        if old is None or not tensor.length:
            return [Like(0, tensor.length, None)]
        if old.length == tensor.length:
            return [Like(0, tensor.length, old.offset)]
        return self._rows(tensor, old)

    def _rows(self, tensor: Tensor, old: Tensor) -> list[Like]:
        """The likes of a tensor that has fewer or more rows than its like."""
        row = tensor.length // tensor.shape[0]
        common = min(tensor.length, old.length)
        at_the_end = [Like(0, common, old.offset), Like(common, tensor.length - common, None)]
        kind = element_kinds(tensor.dtype)[0]
        if max(tensor.shape[0], old.shape[0]) > _MAX_ROWS or row % kind.width or not kind.has_steps:
            return [like for like in at_the_end if like.length]
        new_rows, old_rows = _sampled(tensor, self._new_file, row), _sampled(old, self._old_file, row)
        blocks = align_rows(new_rows, old_rows, kind)
        if len(blocks) > _MAX_BLOCKS:
            return [like for like in at_the_end if like.length]
        places = [None if block.source is None else old.offset + block.source * row for block in blocks]
        return [Like(one.start * row, one.count * row, place) for one, place in zip(blocks, places, strict=True)]

    def _like(self, tensor: Tensor) -> Tensor | None:
        named = self._by_name.get(tensor.name)
        if named is not None and not _common_bytes(tensor, named):
            named = None
        if tensor.length and element_kinds(tensor.dtype)[0].has_steps:
            near = named is not None and self._distance(tensor, named) < _near(tensor)
            # Where rows were put in, what stands at one place in both is not alike, and still it is the same tensor.
            is_grown = named is not None and named.length != tensor.length
            named = named if near or is_grown else self._nearest(tensor, named)
        return named

    def _nearest(self, tensor: Tensor, named: Tensor | None) -> Tensor | None:
        # The first of equals wins.
        choices = [named] if named else []
        return min(choices + self._nearby(tensor), key=lambda other: self._distance(tensor, other), default=None)

    def _nearby(self, tensor: Tensor) -> list[Tensor]:
        alike = self._by_shape.get((tensor.dtype, tensor.shape), [])
        return sorted(alike, key=lambda other: (abs(other.offset - tensor.offset), other.offset))[:_MAX_COMPARED]

    def _distance(self, new: Tensor, old: Tensor) -> int:
        """Return the sum of the bit lengths of a sample's steps, in thousandths of a bit for each value."""
        kind = element_kinds(new.dtype)[0]
        common = _common_bytes(new, old)
        length = min(_SAMPLE_BYTES, common)
        start = (common - length) // 2 // kind.width * kind.width
        ours = patterns_of(self._new_file.read_at(new.offset + start, length), kind)
        theirs = patterns_of(self._old_file.read_at(old.offset + start, length), kind)
        lengths = np.frexp(steps_between(theirs, ours, kind).astype(np.float64))[1]
        return int(lengths.sum()) * 1000 // max(len(ours), 1)


def _near(tensor: Tensor) -> int:
    """Return a distance below which there is no need to look for something nearer."""
    # Unrelated floats are an octave apart, or have another sign: more bits than a mantissa has.
    return 1000 * (mantissa_bits(element_kinds(tensor.dtype)[0]) + 1)


def _common_bytes(new: Tensor, old: Tensor) -> int:
    """Return how many bytes at the beginning of `new` may come from `old`: all when it was only reshaped."""
    if new.dtype != old.dtype:
        return 0
    if new.length == old.length:
        return new.length
    # Rows were added or dropped, as another vocabulary does to embeddings.
    has_rows = len(new.shape) == len(old.shape) > 0 and new.shape[1:] == old.shape[1:]
    return min(new.length, old.length) if has_rows else 0


def _sampled(tensor: Tensor, file: OldBytes, row: int) -> NDArray[np.unsignedinteger]:
    """Return the patterns of a few values of each row, shape (rows, values)."""
    kind = element_kinds(tensor.dtype)[0]
    columns = row // kind.width
    chosen = np.unique(np.linspace(0, columns - 1, _ROW_VALUES).astype(np.int64))
    rows_at_once = max(1, PIECE_BYTES // row)
    parts = []
    for first in range(0, tensor.shape[0], rows_at_once):
        count = min(rows_at_once, tensor.shape[0] - first)
        raw = file.read_at(tensor.offset + first * row, count * row)
        parts.append(patterns_of(raw, kind).reshape(count, columns)[:, chosen])
    return np.concatenate(parts)
