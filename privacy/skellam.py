"""The Skellam mechanism: noise in whole numbers that many devices add in shares, whose sum is noise of the same kind.

How large shares are is `privacy.noise_shares`' business, what they cost in all `privacy.renyi`'s.

Source: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021. A
Skellam number is the difference of two independent Poisson numbers, so shares of variance v, of as many devices as
answered, add up to variance v times their number, exactly: nothing is approximated when some fall silent.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.randomness import RandomSource

# Hörmann's rejection method needs a mean of at least this; below it, a Poisson number is added up from its definition.
_SMALL_MEAN: Final = 12.0
# Above, the terms of the logarithm of a probability are so large that their difference loses its digits.
_LARGE_MEAN: Final = 1e5


def skellam_noise(count: int, *, variance: float, random: RandomSource) -> NDArray[np.int64]:
    """`count` independent Skellam numbers of mean 0; shape (count,)."""
    return poisson(count, mean=variance / 2, random=random) - poisson(count, mean=variance / 2, random=random)


def poisson(count: int, *, mean: float, random: RandomSource) -> NDArray[np.int64]:
    """`count` independent Poisson numbers, from the given source alone; shape (count,).

    Source: Hörmann, "The Transformed Rejection Method for Generating Poisson Random Variables", Insurance: Mathematics
    and Economics 1993, algorithm PTRS.
    """
    if not 0 < mean < 1e12:  # noqa: PLR2004 - beyond, whole numbers of 64 bits and their logarithms are too coarse
        raise ValueError(f"a Poisson mean must be positive and below 1e12, not {mean}")
    if mean < _SMALL_MEAN:
        return _small_poisson(count, mean, random)
    found = np.empty(count, dtype=np.int64)
    todo = np.arange(count)
    while todo.size:
        drawn, is_accepted = _tried(todo.size, mean, random)
        found[todo[is_accepted]] = drawn[is_accepted]
        todo = todo[~is_accepted]
    return found


def skellam_rdp(order: int, *, l2: float, l1: float, variance: float) -> float:
    """Rényi divergence bound of one noisy sum at a whole order above 1 (their theorem 3.5, in several dimensions).

    Args:
        order: Of the divergence, a whole number above 1.
        l2: Largest L2 norm of what one user adds, in whole numbers.
        l1: The same for the sum of absolute values.
        variance: Of the noise in the sum.
    """
    if order < 2 or not (0 < variance < math.inf and 0 < l2 < math.inf and 0 < l1 < math.inf):  # noqa: PLR2004
        raise ValueError(f"no Skellam bound for order {order}, norms {l2}, {l1} and variance {variance}")
    gaussian = order * l2**2 / (2 * variance)
    beyond = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return gaussian + beyond


def _tried(count: int, mean: float, random: RandomSource) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Candidates, and which of them are Poisson numbers."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    sure = 0.9277 - 3.6224 / (b - 2)
    u, v = random.uniforms(count) - 0.5, random.uniforms(count)
    us = 0.5 - np.abs(u)
    with np.errstate(divide="ignore", over="ignore"):
        k = np.floor((2 * a / us + b) * u + mean + 0.43)
    is_possible = (k >= 0) & np.isfinite(k) & ~((us < 0.013) & (v > us))  # noqa: PLR2004 - the algorithm's constants
    k = np.where(is_possible, k, 0.0)
    with np.errstate(divide="ignore"):
        left = np.log(v) + np.log(inverse_alpha) - np.log(a / us**2 + b)
    right = _log_probability(k, mean)
    is_sure = (us >= 0.07) & (v <= sure)  # noqa: PLR2004 - the algorithm's constants
    return k.astype(np.int64), is_possible & (is_sure | (left <= right))


def _log_probability(k: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """Of the Poisson numbers `k`; right to 1e-9 for every mean.

    Source: Loader, "Fast and Accurate Computation of Binomial Probabilities" (2000): Stirling's series and a deviance.
    """
    if mean < _LARGE_MEAN:
        return np.asarray(k * math.log(mean) - mean - special.gammaln(k + 1), dtype=np.float64)
    k = np.maximum(k, 1.0)  # 0 and 1 are equally impossible
    x = (k - mean) / mean
    return -0.5 * np.log(2 * math.pi * k) - 1 / (12 * k) - mean * ((1 + x) * np.log1p(x) - x)


def _small_poisson(count: int, mean: float, random: RandomSource) -> NDArray[np.int64]:
    """By inverting the distribution function, up to where 1 - 2^-53 lies."""
    most = int(special.pdtrik(1 - 2.0**-53, mean)) + 2
    steps = special.pdtr(np.arange(most), mean)
    return np.searchsorted(steps, random.uniforms(count), side="right").astype(np.int64)
