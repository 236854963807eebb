"""One round's sum under noise in shares, as devices and server make it; masks are left out, as they cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privacy.mechanism import size_of
from privacy.secure_aggregation.quantization import Quantization, wrapped
from privacy.skellam import skellam_noise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from privacy.mechanism import Tensors
    from privacy.noise_shares import NoiseShares
    from privacy.randomness import RandomSource


def noise_of_shares(count: int, *, shares: NoiseShares, devices: int, random: RandomSource) -> npt.NDArray[np.int64]:
    """The noise of so many devices together, in levels; shape (count,)."""
    total = np.zeros(count, dtype=np.int64)
    for _ in range(devices):
        total += skellam_noise(count, variance=shares.share_variance, random=random)
    return total


def average_in_levels(
    updates: Iterable[Mapping[str, npt.NDArray[np.floating]]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    clipping_norm: float,
    levels: int,
    noise: npt.NDArray[np.int64],
    expected_contributions: int,
    random: RandomSource,
) -> Tensors:
    """(sum of `updates`, each clipped and rounded at random, + `noise`) / expected_contributions.

    Args:
        updates: What the devices would send.
        shapes: The tensors of every update, by name.
        clipping_norm: L2 bound of one update.
        levels: In how many whole numbers it is cut.
        noise: In levels; shape (all values,), tensors in the order of their names.
        expected_contributions: Fixed before the round.
        random: What rounding draws from.
    """
    form = Quantization(clipping_norm=clipping_norm, levels=levels, length=size_of(shapes))
    total = noise.copy()
    for update in updates:
        flat = np.concatenate([np.ravel(update[name]) for name in sorted(shapes)])
        total += form.quantized(flat, random)
    flat, start, found = form.restored(wrapped(total)) / expected_contributions, 0, {}
    for name in sorted(shapes):
        end = start + size_of({name: shapes[name]})
        found[name] = flat[start:end].reshape(shapes[name])
        start = end
    return found
