"""Multi-Krum: average the updates that have the most company (Blanchard et al. 2017).

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent
(NeurIPS 2017), section 4 for the score, section 5 for the average of several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from server.federation.coordinates import blocks_of
from server.federation.rule import least_updates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# In float64: 16 MB, whatever the size of the adapter.
_VALUES_AT_ONCE: Final = 1 << 21


def krum_selection(updates: Sequence[Mapping[str, npt.NDArray[np.float32]]], *, hostile: int) -> tuple[int, ...]:
    """Which updates to average: the n - f with the lowest scores, by index.

    Raises:
        ValueError: There are too few updates for so many hostile ones.
    """
    scores = krum_scores(squared_distances(updates), hostile=hostile)
    best = np.argsort(scores, kind="stable")[: len(updates) - hostile]
    return tuple(sorted(int(index) for index in best))


def krum_scores(distances: npt.NDArray[np.float64], *, hostile: int) -> npt.NDArray[np.float64]:
    """Each update's sum of squared distances to its n - f - 2 nearest others.

    Args:
        distances: Squared distances, (n, n).
        hostile: f.

    Raises:
        ValueError: n is below 2f + 3.
    """
    count = len(distances)
    if count < least_updates(hostile):
        raise ValueError(f"{hostile} hostile devices take {least_updates(hostile)} updates, there are {count}")
    nearest = np.sort(distances + np.diag(np.full(count, np.inf)), axis=1)
    return np.asarray(nearest[:, : count - hostile - 2].sum(axis=1), dtype=np.float64)


def squared_distances(updates: Sequence[Mapping[str, npt.NDArray[np.float32]]]) -> npt.NDArray[np.float64]:
    """Squared L2 distances between all updates, (n, n), in float64.

    From inner products, one matrix product a block, with the median as the origin: what the updates have in common
    costs no digits, and neither does one giant among them, behind whose rounding another liar could hide.
    """
    count = len(updates)
    products = np.zeros((count, count))
    for _, _, block in blocks_of(updates, values_at_once=_VALUES_AT_ONCE):
        moved = block.astype(np.float64) - np.median(block, axis=0)
        products += moved @ moved.T
    norms = np.diag(products)
    return np.maximum(norms[:, None] + norms[None, :] - 2 * products, 0.0)
