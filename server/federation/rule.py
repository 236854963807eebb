"""Which aggregation a run uses, and whether it defends a round of a given size; light, for whoever reads a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

AggregationName = Literal["mean", "median", "trimmed-mean", "multi-krum"]


@dataclass(frozen=True, kw_only=True)
class AggregationRule:
    """Which rule, with its parameters.

    Attributes:
        name: `mean` weighs by example counts. The others weigh all alike: a count is the device's own claim.
        trim_fraction: Of `trimmed-mean`: the share that is cut off at each end of every coordinate.
        assumed_hostile: Of `multi-krum`: how many hostile devices it is to outlive.
    """

    name: AggregationName = "mean"
    trim_fraction: float = 0.2
    assumed_hostile: int = 1

    def problem_with(self, updates: int) -> str | None:
        """Why the rule does not defend a round of so many updates, in words; None: it does."""
        if self.name == "median" and updates < 3:  # noqa: PLR2004 - the median of two is their mean
            return f"the median of {updates} updates outlives no hostile device; it takes 3"
        if self.name == "trimmed-mean" and 2 * trimmed_of(updates, self.trim_fraction) >= updates:
            return f"trim-fraction {self.trim_fraction:g} leaves nothing of {updates} updates"
        if self.name == "multi-krum" and updates < least_updates(self.assumed_hostile):
            least = least_updates(self.assumed_hostile)
            return f"multi-krum with {self.assumed_hostile} hostile devices takes {least} updates, not {updates}"
        return None


def trimmed_of(count: int, trim_fraction: float) -> int:
    """How many of `count` updates a fraction cuts off at each end: rounded up, but not for a float's last digit."""
    return math.ceil(trim_fraction * count - 1e-9)


def least_updates(hostile: int) -> int:
    """The fewest updates among which Krum outlives `hostile` ones: 2f + 3 (Blanchard et al. 2017, proposition 1)."""
    return 2 * hostile + 3
