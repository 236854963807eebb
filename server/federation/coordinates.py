"""Aggregation coordinate by coordinate: the median and the trimmed mean of Yin et al. 2018.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates (ICML 2018),
definitions 1 and 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from server.federation.rule import trimmed_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from server.federation.tensors import AdapterState

Block = npt.NDArray[np.float32]

# Values that are looked at at once, over all devices: 16 MB of float32, whatever the size of the adapter.
_VALUES_AT_ONCE: Final = 1 << 22


def coordinate_median(updates: Sequence[Mapping[str, Block]]) -> AdapterState:
    """The median of every coordinate, of an even count the mean of the middle two (definition 1).

    As long as fewer than half of the updates are hostile, each coordinate lies between two honest ones.
    """
    count = len(updates)
    return _by_coordinate(updates, lambda block: _middle_mean(block, cut=(count - 1) // 2))


def trimmed_mean(updates: Sequence[Mapping[str, Block]], *, trim_fraction: float) -> AdapterState:
    """The mean of what is left of every coordinate without its largest and its smallest values (definition 2).

    Args:
        updates: At least one, all of the same names and shapes.
        trim_fraction: The share that is cut off at each end, rounded up to whole devices; below one half.

    Raises:
        ValueError: Nothing would be left.
    """
    cut = trimmed_of(len(updates), trim_fraction)
    if 2 * cut >= len(updates):
        raise ValueError(f"cutting off {cut} at each end leaves nothing of {len(updates)} updates")
    return _by_coordinate(updates, lambda block: _middle_mean(block, cut=cut))


def blocks_of(updates: Sequence[Mapping[str, Block]], *, values_at_once: int) -> Iterator[tuple[str, int, Block]]:
    """All updates side by side, some coordinates at a time.

    Yields:
        The tensor's name, the first coordinate, and the values as (updates, coordinates).
    """
    width = max(1, values_at_once // len(updates))
    for name, like in updates[0].items():
        flat = [update[name].reshape(-1) for update in updates]
        for start in range(0, like.size, width):
            yield name, start, np.stack([values[start : start + width] for values in flat])


def _by_coordinate(updates: Sequence[Mapping[str, Block]], reduce: Callable[[Block], Block]) -> AdapterState:
    result = {name: np.empty(like.shape, np.float32) for name, like in updates[0].items()}
    for name, start, block in blocks_of(updates, values_at_once=_VALUES_AT_ONCE):
        result[name].reshape(-1)[start : start + block.shape[1]] = reduce(block)
    return result


def _middle_mean(block: Block, *, cut: int) -> Block:
    """Mean over axis 0 without the `cut` largest and smallest, in float64: two large halves must not overflow."""
    kept = len(block) - cut
    if cut:
        block = np.partition(block, (cut, kept - 1), axis=0)
    return np.asarray(np.mean(block[cut:kept], axis=0, dtype=np.float64), dtype=np.float32)
