"""How the devices of a secure sum make its noise together, each a share: what is promised, in whole numbers.

A share is a Skellam number of `share_variance` for each value (`privacy.skellam`). Shares of devices that fell silent
are missing, and shares of devices that work with the server hide nothing from it: neither is counted on. All others
together have `variance`, and that alone is what is accounted for. A sum with fewer than `fewest` vectors has less, so
it is never unmasked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from privacy.errors import CalibrationError
from privacy.rounding import MOST_IN_A_SUM, reach_of_sum, rounded_l1, rounded_l2

# Finer levels gain nothing: rounding adds a quarter to the variance of a value, beside millions.
_MOST_LEVELS: Final = 1 << 20
# One device alone would know the noise of the whole sum.
FEWEST_SHARES: Final = 2
# Of one share, so that its Poisson numbers are exact in double precision.
MOST_SHARE_VARIANCE: Final = float(1 << 38)
_EXACTLY: Final = 1e-9

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NoiseShares(BaseModel):
    """One sum's noise. All but `length` and the counts is in levels: the clipping norm is `levels` of them.

    Attributes:
        cohort: Devices that are asked at most.
        counted: Shares that every unmasked sum holds, known to nobody who works with the server.
        colluding: Shares in it that are not counted, as their devices may work with the server.
        levels: In how many whole numbers the clipping norm is cut.
        length: Values in the vector.
        l2, l1: The most that one device moves the sum by, after rounding (`privacy.rounding`).
        variance: Of the counted shares together, in each value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cohort: int = Field(ge=1, le=1_000_000)
    counted: int = Field(ge=1)
    colluding: int = Field(ge=0)
    levels: int = Field(ge=1, lt=MOST_IN_A_SUM)
    length: int = Field(ge=1, le=1 << 40)
    l2: Positive
    l1: Positive
    variance: Positive

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problem = self._problem()
        if problem is not None:
            raise ValueError(f"noise in shares: {problem}")
        return self

    def _problem(self) -> str | None:
        if self.fewest > self.cohort:
            return f"{self.counted} counted and {self.colluding} colluding shares, of a cohort of {self.cohort}"
        bounds = rounded_l2(levels=self.levels, length=self.length), rounded_l1(levels=self.levels, length=self.length)
        if not all(map(_is_same, (self.l2, self.l1), bounds)):
            return f"{self.length} values in {self.levels} levels have bounds {bounds}, not {(self.l2, self.l1)}"
        if self.share_variance > MOST_SHARE_VARIANCE:
            return f"a share of variance {self.share_variance:.3g} is too large to be drawn exactly"
        stddev = math.sqrt(self.cohort * self.share_variance)
        if reach_of_sum(members=self.cohort, norm_bound=self.l2, noise_stddev=stddev) >= MOST_IN_A_SUM:
            return f"a sum of {self.cohort} vectors of {self.levels} levels with this noise may wrap around"
        return None

    @property
    def fewest(self) -> int:
        """Vectors that a sum must hold, so that it has the promised noise."""
        return self.counted + self.colluding

    @property
    def share_variance(self) -> float:
        """Of one device's share, in each value."""
        return self.variance / self.counted

    @property
    def noise_multiplier(self) -> float:
        """The counted noise's standard deviation over the clipping norm."""
        return math.sqrt(self.variance) / self.levels


@dataclass(frozen=True, kw_only=True)
class ShareRule:
    """What a recipe says about noise in shares, before it is known how much of it there is to be.

    Attributes:
        cohort: Devices that are asked.
        dropouts: Largest share of them that may fall silent.
        colluding: Largest share of them that may work with the server.
        length: Values in the vector.
    """

    cohort: int
    dropouts: float
    colluding: float
    length: int

    @property
    def counted(self) -> int:
        """Shares that are counted on; with fewer than `FEWEST_SHARES` there is no promise."""
        return self.cohort - self._silent - self._colluding

    @property
    def _silent(self) -> int:
        return math.floor(self.dropouts * self.cohort + _EXACTLY)

    @property
    def _colluding(self) -> int:
        return math.ceil(self.colluding * self.cohort - _EXACTLY)

    def shares(self, noise_multiplier: float) -> NoiseShares:
        """The shares that make this much noise over the clipping norm, in the finest levels that there is room for.

        Raises:
            CalibrationError: There is no room for so much noise, or too few shares are counted on.
        """
        levels = _MOST_LEVELS
        while levels >= 1 and self.counted >= FEWEST_SHARES:
            try:
                return self._in_levels(levels, noise_multiplier)
            except ValueError:
                levels //= 2
        raise CalibrationError(
            f"noise of {noise_multiplier:g} clipping norms cannot be made in shares by {self.cohort} devices, "
            f"{self.counted} of which are counted on; use a larger cohort, or allow for fewer silent and colluding ones"
        )

    def _in_levels(self, levels: int, noise_multiplier: float) -> NoiseShares:
        return NoiseShares(
            cohort=self.cohort,
            counted=self.counted,
            colluding=self._colluding,
            levels=levels,
            length=self.length,
            l2=rounded_l2(levels=levels, length=self.length),
            l1=rounded_l1(levels=levels, length=self.length),
            variance=(noise_multiplier * levels) ** 2,
        )


def _is_same(stated: float, found: float) -> bool:
    return math.isclose(stated, found, rel_tol=_EXACTLY)
