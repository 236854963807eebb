"""Which tensor of the source each tensor of a target comes from, although names and shapes may have changed.

The tensor of the same name is the first choice, and a reshaped one or one that gained or lost rows at its end is still
the same. A tensor whose name is new, or whose content has moved to another name (a layer was taken out, and all that
followed were renumbered), is looked for by a sample of its values.
"""

from dataclasses import dataclass

import numpy as np

from delta_updates.codecs.elements import element_kinds, mantissa_bits, patterns_of, steps_between
from delta_updates.reading import RandomReader
from delta_updates.tensor_file import Tensor, TensorFile

_SAMPLE_BYTES = 4096
# So many tensors of one shape are compared at most: those nearest in the file.
_MAX_COMPARED = 64


@dataclass(frozen=True, slots=True)
class Like:
    """The first `length` bytes of a tensor resemble those at `offset` of the source's file."""

    offset: int
    length: int


class TensorMatcher:
    """Finds likes in one source file."""

    def __init__(self, old: TensorFile, old_file: RandomReader, new_file: RandomReader) -> None:
        self._old_file = old_file
        self._new_file = new_file
        self._by_name = {tensor.name: tensor for tensor in old.tensors}
        self._by_shape: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
        for tensor in old.tensors:
            self._by_shape.setdefault((tensor.dtype, tensor.shape), []).append(tensor)

    def like(self, tensor: Tensor) -> Like | None:
        """Return where the source has what most resembles `tensor`; None when it has nothing of its kind.

        Whether that is near enough to be of use is not decided here: the builder measures.
        """
        named = self._by_name.get(tensor.name)
        if named is not None and not _common_bytes(tensor, named):
            named = None
        if tensor.length and element_kinds(tensor.dtype)[0].has_steps:
            near = named is not None and self._distance(tensor, named) < _near(tensor)
            named = named if near else self._nearest(tensor, named)
        return Like(named.offset, _common_bytes(tensor, named)) if named else None

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
    # Rows were added or dropped at the end, as a larger vocabulary does to embeddings.
    has_rows = len(new.shape) == len(old.shape) > 0 and new.shape[1:] == old.shape[1:]
    return min(new.length, old.length) if has_rows else 0
