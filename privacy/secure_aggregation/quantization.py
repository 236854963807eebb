"""Vectors of floats as whole numbers modulo 2^32 and back, so that sums of them lose nothing and no norm grows much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from privacy.errors import SecureSumError
from privacy.rounding import MOST_IN_A_SUM, reach_of_sum, rounded_l1, rounded_l2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.randomness import RandomSource

_MOST_TRIES: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a clipped vector becomes whole numbers.

    Attributes:
        clipping_norm: L2 bound of the vector.
        levels: That bound in whole numbers: the finer, the less rounding costs.
        length: Values in the vector.
    """

    clipping_norm: float
    levels: int
    length: int

    def __post_init__(self) -> None:
        if not (0 < self.clipping_norm < math.inf and 1 <= self.levels < MOST_IN_A_SUM and self.length >= 1):
            raise ValueError(f"not a quantization: {self.clipping_norm}, {self.levels} levels, {self.length} values")

    @property
    def norm_bound(self) -> float:
        """The longest that a rounded vector may be, L2 in whole numbers."""
        return rounded_l2(levels=self.levels, length=self.length)

    @property
    def absolute_bound(self) -> float:
        """The same for the sum of absolute values."""
        return rounded_l1(levels=self.levels, length=self.length)

    def require_room(self, *, members: int, noise_stddev: float) -> None:
        """Make sure that no sum of `members` vectors, with noise of this size in whole numbers, wraps around.

        Raises:
            SecureSumError: It could.
        """
        reach = reach_of_sum(members=members, norm_bound=self.norm_bound, noise_stddev=noise_stddev)
        if reach >= MOST_IN_A_SUM:
            raise SecureSumError(
                f"a sum of {members} vectors of {self.levels} levels with noise {noise_stddev:.3g} may reach "
                f"{reach:.3g}, beyond 2^31: use fewer levels or a smaller cohort"
            )

    def quantized(self, vector: NDArray[np.floating], random: RandomSource) -> NDArray[np.int64]:
        """Clip, scale, and round at random so that nothing is lost on average; shape (length,).

        A vector that is not finite becomes zero: it has no direction to keep.

        Raises:
            SecureSumError: No short rounding was found, which practically never happens.
        """
        scaled = np.asarray(vector, dtype=np.float64) * (self.levels / self.clipping_norm)
        norm = float(np.linalg.norm(scaled))
        if not math.isfinite(norm):
            return np.zeros(self.length, dtype=np.int64)
        scaled *= min(1.0, self.levels / norm) if norm > 0 else 1.0
        below = np.floor(scaled)
        part = scaled - below
        for _ in range(_MOST_TRIES):
            rounded = below + (random.uniforms(self.length) < part)
            if float(np.linalg.norm(rounded)) <= self.norm_bound:
                return rounded.astype(np.int64)
        raise SecureSumError("rounding found no vector that is short enough")

    def restored(self, total: NDArray[np.uint32]) -> NDArray[np.float64]:
        """The sum in the vector's own units, from whole numbers modulo 2^32; shape (length,)."""
        signed = total.astype(np.uint32).view(np.int32).astype(np.float64)
        return signed * (self.clipping_norm / self.levels)


def wrapped(values: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Whole numbers modulo 2^32."""
    return (values & 0xFFFFFFFF).astype(np.uint32)
