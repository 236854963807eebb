"""How large a round's updates were, and which stand out.

An operator's view: a norm tells something about one device, so that none of this is ever released (docs/privacy.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Iglewicz and Hoaglin 1993 (How to Detect and Handle Outliers): 0.6745 makes the MAD of normal values their standard
# deviation, 3.5 is their cut.
_MAD_TO_STDDEV, _CUT = 0.6745, 3.5
# Theirs too, for when more than half of the values are the same.
_MEAN_DEVIATION_TO_STDDEV: Final = 1.253314
_FEWEST: Final = 5
_MOST_NAMED: Final = 50


@dataclass(frozen=True, kw_only=True)
class NormReport:
    """The L2 norms of one round's updates.

    Attributes:
        count: Updates that passed the checks.
        smallest, lower_quartile, median, upper_quartile, largest: Of their norms.
        outliers: Robust z of the devices that stand out, the furthest first, at most 50; negative: remarkably small.
    """

    count: int
    smallest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    largest: float
    outliers: Mapping[str, float]

    def to_json(self) -> dict[str, object]:
        """As the registry keeps it, rounded to six digits."""
        facts = {name: float(f"{value:.6g}") for name, value in asdict(self).items() if isinstance(value, float)}
        return {"count": self.count} | facts | {"outliers": {k: round(z, 2) for k, z in self.outliers.items()}}


def norm_report(norms: Mapping[str, float]) -> NormReport | None:
    """Describe the norms of one round, by device; None when there is none."""
    if not norms:
        return None
    scores = robust_scores(norms)
    far = sorted((d for d, z in scores.items() if abs(z) > _CUT), key=lambda device: (-abs(scores[device]), device))
    smallest, lower, median, upper, largest = (
        float(q) for q in np.quantile(list(norms.values()), (0, 0.25, 0.5, 0.75, 1))
    )
    return NormReport(
        count=len(norms),
        smallest=smallest,
        lower_quartile=lower,
        median=median,
        upper_quartile=upper,
        largest=largest,
        outliers={device: scores[device] for device in far[:_MOST_NAMED]},
    )


def robust_scores(norms: Mapping[str, float]) -> dict[str, float]:
    """Each device's robust z: its distance from the median, over the median absolute deviation as a standard deviation.

    All zero below five devices, of which none can be said to stand out, and when all norms are the same.
    """
    values = np.array(list(norms.values()), dtype=np.float64)
    if len(values) < _FEWEST:
        return dict.fromkeys(norms, 0.0)
    distances = values - np.median(values)
    spread = float(np.median(np.abs(distances))) / _MAD_TO_STDDEV
    # The values are float sums: a spread in their last digits is none.
    if spread <= 1e-9 * float(np.max(np.abs(values))):
        spread = float(np.mean(np.abs(distances))) * _MEAN_DEVIATION_TO_STDDEV
    if spread <= 1e-9 * float(np.max(np.abs(values))):
        return dict.fromkeys(norms, 0.0)
    return {device: float(distance / spread) for device, distance in zip(norms, distances, strict=True)}


def repeated_outliers(rounds: Iterable[Iterable[str]]) -> dict[str, int]:
    """Devices that stood out in more than one round, with in how many; the most frequent first."""
    times = Counter(device for outliers in rounds for device in set(outliers))
    return {device: n for device, n in sorted(times.items(), key=lambda item: (-item[1], item[0])) if n > 1}
