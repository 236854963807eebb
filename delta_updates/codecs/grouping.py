"""Which contexts share an entropy code: as many codes as pay for themselves.

Contexts that neighbour each other become one class while that costs less than a class of its own; before, parts of a
chunk become one group while their values move alike.
"""

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.information import UNIT_BITS, Counts, information
from delta_updates.codecs.places import places_of

# What a class costs: its entry, and an entropy table for each of its streams.
_CLASS_UNITS = 512 << UNIT_BITS
# A package counts classes in one byte; each costs a reader a pass over the chunk.
_MAX_CLASSES = 255
# What a group costs: some classes.
_GROUP_UNITS = 4 * _CLASS_UNITS
# Where fewer symbols than one in so many are not zero, those are counted by themselves.
_SPARSE_SHARE = 4


def merge_neighbours(rows: Counts) -> list[tuple[int, Counts]]:
    """Merge neighbouring rows of symbol counts, shape (contexts, symbols), at least one, into classes.

    Returns:
        The first row of each class, and the class's counts.
    """
    starts = _rare_together(rows.sum(axis=1).tolist())
    rows = np.add.reduceat(rows, starts, axis=0)
    alone = information(rows).tolist()
    both = information(rows[:-1] + rows[1:]).tolist()
    losses = [union - left - right for union, left, right in zip(both, alone[:-1], alone[1:], strict=True)]
    firsts, groups = starts, list(rows)
    while losses and (min(losses) < _CLASS_UNITS or len(groups) > _MAX_CLASSES):
        at = losses.index(min(losses))
        alone[at : at + 2] = [alone[at] + alone[at + 1] + losses[at]]
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
        del firsts[at + 1], losses[at]
        pairs = range(max(at - 1, 0), min(at + 1, len(losses)))
        unions = information(np.array([groups[pair] + groups[pair + 1] for pair in pairs])).tolist() if pairs else []
        for pair, union in zip(pairs, unions, strict=True):
            losses[pair] = union - alone[pair] - alone[pair + 1]
    return list(zip(firsts, groups, strict=True))


def _rare_together(totals: list[int]) -> list[int]:
    """Return where runs of rows begin that are too rare to have classes of their own.

    Two rows that share a code lose at most one bit a symbol.
    """
    starts, together = [0], totals[0]
    for row, total in enumerate(totals[1:], start=1):
        together += total
        if together << UNIT_BITS > _CLASS_UNITS:
            starts.append(row)
            together = total
    return starts


def merge_alike(counts: Counts) -> list[int]:
    """Return the group of each of several kinds of parts, from their counts, shape (kinds, contexts, symbols)."""
    members = [[kind] for kind in range(len(counts))]
    tables = list(counts)
    losses = {(i, j): _loss(tables[i], tables[j]) for j in range(len(tables)) for i in range(j)}
    while losses:
        first, second = min(losses, key=lambda pair: (losses[pair], pair))
        if losses[first, second] >= _GROUP_UNITS:
            break
        tables[first] = tables[first] + tables[second]
        members[first] += members[second]
        members[second] = []
        losses = {pair: loss for pair, loss in losses.items() if second not in pair}
        for pair in losses:
            if first in pair:
                losses[pair] = _loss(tables[pair[0]], tables[pair[1]])
    groups = [0] * len(counts)
    for group, kinds in enumerate(filter(None, members)):
        for kind in kinds:
            groups[kind] = group
    return groups


def _loss(left: Counts, right: Counts) -> int:
    """Return by how much two tables cost more when they share their codes, context by context."""
    return int((information(left + right) - information(left) - information(right)).sum())


def count_pairs(symbols: NDArray[np.uint8], contexts: NDArray[np.uint8] | NDArray[np.uint16]) -> Counts:
    """Return how often each symbol appears in each context, shape (highest context + 1, highest symbol + 1)."""
    width, height = int(symbols.max(initial=0)) + 1, int(contexts.max(initial=0)) + 1
    if contexts.dtype == np.uint8:
        return _count_short_pairs(symbols, contexts.astype(np.uint8, copy=False))[:height, :width]
    pairs = contexts.astype(np.int64) * width + symbols
    return np.bincount(pairs, minlength=height * width).reshape(height, width).astype(np.int64)


def _count_short_pairs(symbols: NDArray[np.uint8], contexts: NDArray[np.uint8]) -> Counts:
    """Return counts of shape (256, 256). Counting looks at 16-bit numbers twice as fast as at pairs of indices."""
    nonzero = places_of(symbols != 0)
    if len(nonzero) * _SPARSE_SHARE > len(symbols):
        short = contexts.astype(np.uint16) << np.uint16(8) | symbols
        return np.bincount(short, minlength=1 << 16).reshape(256, 256).astype(np.int64)
    rare = contexts.take(nonzero)
    counts = np.bincount(rare.astype(np.uint16) << np.uint16(8) | symbols.take(nonzero), minlength=1 << 16)
    counts = counts.reshape(256, 256).astype(np.int64)
    counts[:, 0] = _count_bytes(contexts) - counts.sum(axis=1)
    return counts


def _count_bytes(numbers: NDArray[np.uint8]) -> Counts:
    """Return how often each byte appears, shape (256,): two at a time."""
    paired, odd = numbers[: len(numbers) // 2 * 2].view(np.uint16), numbers[len(numbers) // 2 * 2 :]
    counts = np.bincount(paired, minlength=1 << 16).reshape(256, 256)
    result: Counts = (counts.sum(axis=0) + counts.sum(axis=1)).astype(np.int64)
    result[odd] += 1
    return result
