"""Vectors of floats as whole numbers modulo 2^32 and back, so that sums of them lose nothing and no norm grows much.

Source: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021, section 4.2: rounding at random, done again until the rounded vector is short enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from privacy.errors import SecureSumError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.randomness import RandomSource

_HALF: Final = 1 << 31
# Rounding is done again with this probability at most, each time (their β).
_AGAIN: Final = math.exp(-0.5)
_MOST_TRIES: Final = 1000
# How far out noise in the sum is never expected.
_TAIL: Final = 12.0


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
        if not (0 < self.clipping_norm < math.inf and 1 <= self.levels < _HALF and self.length >= 1):
            raise ValueError(f"not a quantization: {self.clipping_norm}, {self.levels} levels, {self.length} values")

    @property
    def norm_bound(self) -> float:
        """The longest that a rounded vector may be, L2 in whole numbers (their equation 4)."""
        root = math.sqrt(self.length)
        rounded = self.levels**2 + self.length / 4 + math.sqrt(-2 * math.log(_AGAIN)) * (self.levels + root / 2)
        return min(self.levels + root, math.sqrt(rounded))

    @property
    def absolute_bound(self) -> float:
        """The same for the sum of absolute values: at most root of length times L2, and at most its square."""
        return min(math.sqrt(self.length) * self.norm_bound, self.norm_bound**2)

    def require_room(self, *, members: int, noise_stddev: float) -> None:
        """Make sure that no sum of `members` vectors, with noise of this size in whole numbers, wraps around.

        Raises:
            SecureSumError: It could.
        """
        reach = members * self.norm_bound + _TAIL * noise_stddev
        if reach >= _HALF:
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
