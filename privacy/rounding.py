"""How long a clipped vector may be once it is rounded at random to whole numbers, and how far a sum of them reaches.

Source: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021, section 4.2: rounding at random, done again until the rounded vector is short enough.
"""

from __future__ import annotations

import math
from typing import Final

# Rounding is done again with this probability at most, each time (their β).
_AGAIN: Final = math.exp(-0.5)
# How far out noise in the sum is never expected.
_TAIL: Final = 12.0
# A number in a sum modulo 2^32 lies below this, on both sides of zero, or it has wrapped around.
MOST_IN_A_SUM: Final = 1 << 31


def rounded_l2(*, levels: int, length: int) -> float:
    """L2 bound of a rounded vector of `length` values whose bound was `levels` before (their equation 4)."""
    root = math.sqrt(length)
    rounded = levels**2 + length / 4 + math.sqrt(-2 * math.log(_AGAIN)) * (levels + root / 2)
    return min(levels + root, math.sqrt(rounded))


def rounded_l1(*, levels: int, length: int) -> float:
    """The same for the sum of absolute values: at most root of length times L2, and at most its square."""
    l2 = rounded_l2(levels=levels, length=length)
    return min(math.sqrt(length) * l2, l2**2)


def reach_of_sum(*, members: int, norm_bound: float, noise_stddev: float) -> float:
    """As far from zero as any number of a sum of `members` rounded vectors with noise ever lies."""
    return members * norm_bound + _TAIL * noise_stddev
