"""Which rows of a matrix are rows of an older one, after some were put in, taken out or replaced anywhere.

Values may have moved by training meanwhile, so that hardly a row is equal. But rows keep their order: from one place
where something was put in or taken out to the next, all of them are shifted by the same number. The shifts that can be
are few; which one holds for each row is the cheapest path through them, where a row costs the bits of its steps, a row
that is new those of a value, and each change of the shift something more. (A. J. Viterbi, "Error bounds for
convolutional codes and an asymptotically optimum decoding algorithm", 1967.)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from delta_updates.codecs.elements import mantissa_bits, steps_between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from delta_updates.codecs.elements import ElementKind

    Samples = NDArray[np.unsignedinteger]

# Of a vocabulary that grew by more, the shifts are those at which rows are equal.
_MOST_BY_COUNT: Final = 32
_MOST_BY_ROWS: Final = 32
# What a record costs, in bits, over the values of a sample: a change of the shift should be worth it.
_CHANGE_BITS: Final = 64.0
# A row that nothing is like: as many bits for each value as unrelated values are apart, and a little less.
_SPARE_BITS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Block:
    """``count`` rows from ``start`` on are the older one's from ``source`` on; None: they are new."""

    start: int
    count: int
    source: int | None


def align_rows(new: Samples, old: Samples, kind: ElementKind) -> list[Block]:
    """Return the blocks that the rows of a newer matrix form, in order; together they have all of them.

    Args:
        new: The same few values of each row as patterns, shape (rows, values).
        old: Those of the older matrix, shape (its rows, values).
        kind: What the patterns mean.
    """
    shifts = _shifts(new, old)
    costs = np.full((len(new), len(shifts) + 1), np.inf, np.float32)
    costs[:, -1] = (mantissa_bits(kind) + _SPARE_BITS) * new.shape[1]
    for column, shift in enumerate(shifts):
        # Row i is the older one's row i - shift.
        first, end = max(0, shift), min(len(new), len(old) + shift)
        if first < end:
            steps = steps_between(old[first - shift : end - shift], new[first:end], kind)
            costs[first:end, column] = np.frexp(steps.astype(np.float64))[1].sum(axis=1)
    return _blocks(_cheapest_path(costs), shifts)


def _shifts(new: Samples, old: Samples) -> Sequence[int]:
    """The shifts that rows may have: those between none and the difference in number, and those of equal rows."""
    grown = len(new) - len(old)
    found = {0, grown}
    if abs(grown) <= _MOST_BY_COUNT:
        found |= set(range(min(0, grown), max(0, grown)))
    places = {row.tobytes(): number for number, row in enumerate(old)}
    equal = Counter(
        number - there for number, row in enumerate(new) if (there := places.get(row.tobytes())) is not None
    )
    found |= {shift for shift, _ in sorted(equal.items(), key=lambda item: (-item[1], item[0]))[:_MOST_BY_ROWS]}
    return sorted(found)


def _cheapest_path(costs: NDArray[np.float32]) -> list[int]:
    """The column of each row, so that the costs and the changes of columns are least."""
    best = costs[0].astype(np.float64)
    # There are fewer columns than a byte counts, and many rows.
    came_from = np.zeros(costs.shape, np.uint8)
    stay = np.arange(costs.shape[1], dtype=np.uint8)
    for row in range(1, len(costs)):
        least = int(best.argmin())
        changes = best[least] + _CHANGE_BITS < best
        came_from[row] = np.where(changes, least, stay)
        best = np.minimum(best, best[least] + _CHANGE_BITS) + costs[row]
    path = [int(best.argmin())]
    for row in range(len(costs) - 1, 0, -1):
        path.append(int(came_from[row, path[-1]]))
    return path[::-1]


def _blocks(path: Sequence[int], shifts: Sequence[int]) -> list[Block]:
    blocks: list[Block] = []
    start = 0
    for end in range(1, len(path) + 1):
        if end == len(path) or path[end] != path[start]:
            source = None if path[start] == len(shifts) else start - shifts[path[start]]
            blocks.append(Block(start, end - start, source))
            start = end
    return blocks
