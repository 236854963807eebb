"""What an attack's scores come to: ROC, area under it, and the points at low false-positive rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from privacy.audits.finding import CONFIDENCE, Interval, clopper_pearson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CLAIMED_AT_FPR: Final = 0.001
TARGET_FPRS: Final = (CLAIMED_AT_FPR, 0.01)
_BOOTSTRAP_RESAMPLES: Final = 1000
_HISTOGRAM_BINS: Final = 40


class OperatingPoint(BaseModel):
    """The attack at one threshold: an example counts as found when its score is strictly above it.

    Both intervals are two-sided 95% Clopper-Pearson intervals at this threshold; `false_positive_interval` shows how
    well the non-members pin down the rate that the threshold was chosen for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_fpr: float
    threshold: float
    false_positives: int
    false_positive_interval: Interval
    hits: int
    true_positive_rate: float
    true_positive_interval: Interval


class AttackFigures(BaseModel):
    """One score's figures: area under the ROC curve and the points that matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float
    auc_interval: Interval
    points: tuple[OperatingPoint, ...]


def figures_of(member: Floats, other: Floats, *, seed: int) -> AttackFigures:
    """The figures of one score, given for members and for others; higher means more likely a member."""
    auc, interval = _auc_with_interval(member, other, seed)
    points = tuple(_operating_point(member, other, target) for target in TARGET_FPRS)
    return AttackFigures(auc=auc, auc_interval=interval, points=points)


def _operating_point(member: Floats, other: Floats, target_fpr: float) -> OperatingPoint:
    """The lowest threshold with at most `target_fpr` false positives among the non-members.

    Strictly above counts, so tied scores are never split in the attack's or the claim's favour.
    """
    allowed = int(target_fpr * other.size + 1e-9)
    threshold = float(np.sort(other)[other.size - 1 - allowed])
    false_positives, hits = int((other > threshold).sum()), int((member > threshold).sum())
    return OperatingPoint(
        target_fpr=target_fpr,
        threshold=threshold,
        false_positives=false_positives,
        false_positive_interval=clopper_pearson(false_positives, other.size),
        hits=hits,
        true_positive_rate=hits / member.size,
        true_positive_interval=clopper_pearson(hits, member.size),
    )


def _auc_with_interval(member: Floats, other: Floats, seed: int) -> tuple[float, Interval]:
    """Chance that a member scores above a non-member, a tie counting half; percentile bootstrap over both groups."""
    values, inverse = np.unique(np.concatenate([member, other]), return_inverse=True)
    of_member, of_other = inverse[: member.size], inverse[member.size :]
    auc = _auc(np.bincount(of_member, minlength=values.size), np.bincount(of_other, minlength=values.size))
    if auc in {0.0, 1.0}:
        # The bootstrap sees no spread here. Disjoint pairs are independent trials, so their interval is exact.
        pairs = min(member.size, other.size)
        return auc, clopper_pearson(round(auc * pairs), pairs)
    random = np.random.default_rng(seed)
    resampled = [
        _auc(
            np.bincount(random.choice(of_member, member.size), minlength=values.size),
            np.bincount(random.choice(of_other, other.size), minlength=values.size),
        )
        for _ in range(_BOOTSTRAP_RESAMPLES)
    ]
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return auc, (float(low), float(high))


def _auc(member_counts: NDArray[np.int64], other_counts: NDArray[np.int64]) -> float:
    """From counts a distinct score, in rising order."""
    below = np.cumsum(other_counts) - other_counts
    favourable = (member_counts * (below + other_counts / 2)).sum()
    return float(favourable / (member_counts.sum() * other_counts.sum()))


def roc_of(member: Floats, other: Floats) -> tuple[tuple[float, float], ...]:
    """(false-positive rate, true-positive rate) where either changes, thinned to a drawable number of points."""
    thresholds = np.unique(np.concatenate([member, other]))[::-1]
    fpr = 1 - np.searchsorted(np.sort(other), thresholds, side="left") / other.size
    tpr = 1 - np.searchsorted(np.sort(member), thresholds, side="left") / member.size
    wanted = np.unique(np.concatenate([np.geomspace(1e-4, 1, 120), np.linspace(0, 1, 80)]))
    keep = np.unique(np.clip(np.searchsorted(fpr, wanted, side="right") - 1, 0, fpr.size - 1))
    return ((0.0, 0.0), *((float(fpr[index]), float(tpr[index])) for index in keep), (1.0, 1.0))


def shared_edges(member: Floats, other: Floats) -> Floats:
    """Histogram edges over the middle 99% of both groups."""
    both = np.concatenate([member, other])
    low, high = np.quantile(both, [0.005, 0.995])
    return np.linspace(low, high if high > low else low + 1e-6, _HISTOGRAM_BINS + 1)


def counts_in(scores: Floats, edges: Floats) -> tuple[int, ...]:
    """Scores per bin; the outermost bins take what lies beyond them."""
    return tuple(np.histogram(scores.clip(edges[0], edges[-1]), edges)[0].tolist())
