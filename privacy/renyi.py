"""ε by Rényi divergences: for bills with noise that has no privacy loss distribution of its own.

What a vector of Skellam noise hides depends on the whole vector that is added, not on its length alone, and which
vector is the worst is not known: there is no distribution to compose, as there is for Gaussian noise. There is a bound
on each of its Rényi divergences. A bill with such a sum is therefore priced by Rényi divergences as a whole, its
Gaussian sums too; any other bill by the tighter PLD (`privacy.accountant`). Both bound from above.

Sources: Agarwal, Kairouz, Liu 2021 (`privacy.skellam`); Mironov, Talwar, Zhang, "Rényi Differential Privacy of the
Sampled Gaussian Mechanism" (2019), section 3.3, for whole orders; Canonne, Kamath, Steinke, "The Discrete Gaussian for
Differential Privacy", NeurIPS 2020, proposition 12, for the way from divergences to ε.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from scipy import special

from privacy.accountant import epsilon_of_groups
from privacy.skellam import skellam_rdp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from privacy.accountant import Group

RENYI_ACCOUNTANT: Final = (
    "RDP in whole orders (Agarwal, Kairouz, Liu 2021, theorem 3.5), as Skellam sums have no privacy loss distribution"
)
_ORDERS: Final = (*range(2, 64), 80, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)


class SkellamSums(NamedTuple):
    """Equal sums that one user is in: how far it moves each, and the variance of the noise, in whole numbers."""

    l2: float
    l1: float
    variance: float
    sums: int


# One line of a bill.
Charge = SkellamSums | tuple[float, float, int]


def epsilon_of_charges(charges: Iterable[Charge], *, target_delta: float) -> float:
    """ε of a whole bill at `target_delta`: by PLD where all of its noise is Gaussian, else by Rényi divergences.

    Raises:
        ValueError: `target_delta` is not between 0 and 1.
    """
    skellam, gaussian = _sorted_out(charges)
    if not skellam:
        return epsilon_of_groups(gaussian, target_delta=target_delta)
    if not 0 < target_delta < 1:
        raise ValueError(f"target_delta must lie between 0 and 1, not {target_delta}")
    if any(noise <= 0 for _, noise, _ in gaussian):
        return math.inf
    return _epsilon(skellam, gaussian, target_delta)


def gaussian_rdp(order: int, *, noise_multiplier: float, sampling_probability: float) -> float:
    """Rényi divergence bound of one Gaussian sum over a Poisson-sampled cohort, at a whole order above 1."""
    if sampling_probability == 1:
        return order / (2 * noise_multiplier**2)
    k = np.arange(order + 1)
    terms = (
        special.gammaln(order + 1)
        - special.gammaln(k + 1)
        - special.gammaln(order - k + 1)
        + k * math.log(sampling_probability)
        + (order - k) * math.log1p(-sampling_probability)
        + (k * k - k) / (2 * noise_multiplier**2)
    )
    return float(special.logsumexp(terms)) / (order - 1)


@lru_cache(maxsize=4096)
def _epsilon(skellam: tuple[SkellamSums, ...], gaussian: tuple[Group, ...], target_delta: float) -> float:
    def at(order: int) -> float:
        spent = sum(
            one.sums * skellam_rdp(order, l2=one.l2, l1=one.l1, variance=one.variance) for one in skellam
        ) + sum(
            steps * gaussian_rdp(order, noise_multiplier=noise, sampling_probability=q) for q, noise, steps in gaussian
        )
        return spent + math.log1p(-1 / order) - math.log(target_delta * order) / (order - 1)

    return max(0.0, min(map(at, _ORDERS)))


def _sorted_out(charges: Iterable[Charge]) -> tuple[tuple[SkellamSums, ...], tuple[Group, ...]]:
    skellam, gaussian = [], []
    for one in charges:
        if isinstance(one, SkellamSums):
            skellam.append(one)
        else:
            gaussian.append(one)
    return tuple(sorted(skellam)), tuple(sorted(gaussian))
