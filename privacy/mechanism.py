"""One round's noisy sum over users: clip each contribution, add noise once, divide by a number that is fixed before.

Source: McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
algorithm 1 with the estimator of fixed denominator. The sum is not weighted: a weight would multiply what one user can
do. Neither noise nor divisor know how many contributions came in: missing ones leave both as they were promised.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Tensors = dict[str, npt.NDArray[np.float64]]


def norm_of(update: Mapping[str, npt.NDArray[np.floating]]) -> float:
    """L2 norm over all tensors, in double precision and without overflow; NaN or infinity where a value is."""
    with np.errstate(invalid="ignore"):
        norms = [_tensor_norm(np.asarray(tensor, dtype=np.float64)) for tensor in update.values()]
    return math.hypot(*norms) if not any(map(math.isnan, norms)) else math.nan


def clip_update(update: Mapping[str, npt.NDArray[np.floating]], *, clipping_norm: float) -> Tensors:
    """`update` scaled down to an L2 norm of at most `clipping_norm`, float64; zeros where a value is not finite.

    NaN and infinity have no direction to keep, and would pass a comparison with the bound.
    """
    norm = norm_of(update)
    if not math.isfinite(norm):
        return {name: np.zeros(tensor.shape) for name, tensor in update.items()}
    scale = 1.0 if norm <= clipping_norm else clipping_norm / norm
    return {name: np.asarray(tensor, dtype=np.float64) * scale for name, tensor in update.items()}


def noisy_average(
    updates: Iterable[Mapping[str, npt.NDArray[np.floating]]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    clipping_norm: float,
    noise_multiplier: float,
    expected_contributions: int,
    unit_noise: npt.NDArray[np.float64],
) -> Tensors:
    """(sum of clipped `updates` + clipping_norm * noise_multiplier * unit_noise) / expected_contributions.

    Args:
        updates: What the devices sent; each is clipped here, whatever was done to it before.
        shapes: The tensors of every update, by name.
        clipping_norm: The most that one update can move the sum.
        noise_multiplier: The noise's standard deviation in the sum, over `clipping_norm`.
        expected_contributions: Fixed before the round, not the number that came in.
        unit_noise: Noise of variance 1; shape (all values,), tensors in the order of their names.

    Raises:
        ValueError: A number is out of range, or tensors or noise do not have the stated shapes.
    """
    _require_sane(clipping_norm, noise_multiplier, expected_contributions)
    if unit_noise.shape != (size_of(shapes),):
        raise ValueError(f"the noise has shape {unit_noise.shape}, the tensors have {size_of(shapes)} values")
    total = {name: np.zeros(shape) for name, shape in shapes.items()}
    for update in updates:
        clipped = clip_update(update, clipping_norm=clipping_norm)
        if {name: tensor.shape for name, tensor in clipped.items()} != dict(shapes):
            raise ValueError("an update has other tensors than the adapter")
        for name, tensor in clipped.items():
            total[name] += tensor
    stddev, start = clipping_norm * noise_multiplier, 0
    for name in sorted(shapes):
        end = start + total[name].size
        total[name] += stddev * unit_noise[start:end].reshape(shapes[name])
        total[name] /= expected_contributions
        start = end
    return total


def size_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many values tensors of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes.values())


def _tensor_norm(tensor: npt.NDArray[np.float64]) -> float:
    largest = float(np.max(np.abs(tensor), initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm(tensor / largest))  # squares of the values themselves could overflow


def _require_sane(clipping_norm: float, noise_multiplier: float, expected_contributions: int) -> None:
    if not (0 < clipping_norm < math.inf and 0 <= noise_multiplier < math.inf and expected_contributions >= 1):
        raise ValueError(
            "a noisy sum needs a positive clipping norm, noise that is not negative and at least one expected "
            f"contribution, not {clipping_norm}, {noise_multiplier} and {expected_contributions}"
        )
