"""A clipping norm that follows a quantile of the users' norms.

Source: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021,
algorithm 1 and theorem 1. How many norms lie within the bound is a count over users: it gets noise of its own, and the
sum's noise is raised so that both together cost what one sum with the stated noise multiplier costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_SMALLEST: Final = 1e-8
_LARGEST: Final = 1e8


@dataclass(frozen=True, kw_only=True)
class AdaptiveClipping:
    """The geometric rule.

    Attributes:
        quantile: Share of the norms that shall lie within the bound, in (0, 1).
        step: How fast the bound follows (the paper's learning rate; 0.2 there).
        bit_noise: Standard deviation of the noise in the count of norms within the bound.
        expected_contributions: The divisor of that count, fixed before the round.
    """

    quantile: float
    step: float
    bit_noise: float
    expected_contributions: int

    def __post_init__(self) -> None:
        if not (0 < self.quantile < 1 and 0 < self.step < math.inf and self.expected_contributions >= 1):
            raise ValueError(
                "adaptive clipping needs a quantile in (0, 1), a positive step and an expected contribution"
            )
        if not 0 < self.bit_noise < math.inf:
            raise ValueError(f"the count of norms needs noise above 0, not {self.bit_noise}")

    def noise_multiplier_of_sum(self, noise_multiplier: float) -> float:
        """The sum's noise, when sum and count together may cost what `noise_multiplier` costs alone (theorem 1).

        A bit moves the count, from which a half is taken for each user, by at most 1/2 either way.

        Raises:
            ValueError: The count's noise is too small: it alone would cost more.
        """
        if noise_multiplier == 0:
            return 0.0
        left = noise_multiplier**-2 - (2 * self.bit_noise) ** -2
        if left <= 0:
            raise ValueError(
                f"noise {self.bit_noise:g} in the count of norms costs more than the whole round may at noise "
                f"multiplier {noise_multiplier:g}; it must exceed {noise_multiplier / 2:g}"
            )
        return float(left**-0.5)

    def next_norm(self, clipping_norm: float, norms: Iterable[float], *, unit_noise: float) -> float:
        """The bound for the next round, from this round's `norms` before clipping and one number of variance 1."""
        bits = sum(0.5 if norm <= clipping_norm else -0.5 for norm in norms)
        within = 0.5 + (bits + self.bit_noise * unit_noise) / self.expected_contributions
        moved = clipping_norm * math.exp(-self.step * (within - self.quantile))
        return min(max(moved, _SMALLEST), _LARGEST)
