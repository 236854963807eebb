"""Membership inference: can one tell from a released model whether an example was trained on?

The attack is the calibrated loss: what share of its loss an example lost from the base to the release (after Watson et
al., "On the Importance of Difficulty Calibration in Membership Inference Attacks", ICLR 2022). Without that calibration
the attack looks harmless even on a model trained without any protection. A mean over few tokens falls far by chance, so
it counts times the root of its tokens; and a style that was learned makes what the base found hardest fall furthest, so
it is a share. Judged at low false-positive rates (Carlini et al., IEEE S&P 2022), not on average.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from privacy.audits.attack_figures import (
    CLAIMED_AT_FPR,
    AttackFigures,
    OperatingPoint,
    counts_in,
    figures_of,
    roc_of,
    shared_edges,
)
from privacy.audits.finding import CONFIDENCE, Finding, Verdict, one_sided

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.audits.losses import Losses

CLAIMED_RATE = 0.003
# Fewer members cannot prove the claim even if the attack finds none: (1 - rate)^n must fall below 5%.
MEMBERS_NEEDED = math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - CLAIMED_RATE))
# The rate at which `power` is stated: what guessing alone achieves at the claimed false-positive rate.
_TRUE_RATE_FOR_POWER = CLAIMED_AT_FPR


class MembershipResult(BaseModel):
    """A membership measurement, complete enough to print and draw, without any single example's score.

    `claimed_point` decides: pass when the one-sided 95% upper bound of the true-positive rate at 0.1% false positives
    is below 0.3%, enough examples were measured and the positive control was caught; fail when the lower bound is
    above 0.3% and above what the false positives explain; else inconclusive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    reason: str
    members: int
    non_members: int
    upper_bound: float
    power: float
    calibrated: AttackFigures
    raw_loss: AttackFigures
    likelihood: AttackFigures | None = None
    roc: tuple[tuple[float, float], ...]
    bin_edges: tuple[float, ...]
    member_counts: tuple[int, ...]
    non_member_counts: tuple[int, ...]
    control: AttackFigures | None
    is_control_caught: bool | None

    @property
    def claimed_point(self) -> OperatingPoint:
        """The stronger attack at 0.1% false positives: the one that the verdict rests on."""
        return strongest_of(self.calibrated, self.likelihood).points[0]


def membership_audit(
    members: Losses,
    non_members: Losses,
    *,
    positive_control: MembershipResult | None = None,
    likelihood_scores: tuple[Sequence[float], Sequence[float]] | None = None,
    seed: int = 0,
) -> MembershipResult:
    """Measure how well an attacker tells members from non-members.

    Members were trained on, non-members come from the same source and were not. `positive_control` is this audit's
    result on the same run without noise, which the attack must catch before its silence elsewhere means anything:
    without it the verdict is never pass.

    Args:
        members: what was trained on.
        non_members: what was not.
        positive_control: the result for a run known to leak.
        likelihood_scores: scores of members and non-members by shadow models (`privacy.audits.lira`), where there are
            any; the claim is then held against the stronger one of the two attacks.
        seed: of the bootstrap for the area under the curve.

    Raises:
        AuditError: lengths differ, a loss is not finite, or there are too few to measure anything.
    """
    member_scores, other_scores = members.calibrated("member"), non_members.calibrated("non-member")
    calibrated = figures_of(member_scores, other_scores, seed=seed)
    likelihood = None
    if likelihood_scores is not None:
        scores = [np.asarray(values, dtype=np.float64) for values in likelihood_scores]
        likelihood = figures_of(scores[0], scores[1], seed=seed)
    caught = None if positive_control is None else positive_control.verdict is Verdict.FAIL
    verdict, reason, upper = _judge(
        strongest_of(calibrated, likelihood).points[0],
        member_scores.size,
        other_scores.size,
        is_control_caught=caught,
    )
    edges = shared_edges(member_scores, other_scores)
    return MembershipResult(
        verdict=verdict,
        reason=reason,
        members=member_scores.size,
        non_members=other_scores.size,
        upper_bound=upper,
        power=power_to_pass(members=member_scores.size),
        calibrated=calibrated,
        raw_loss=figures_of(members.raw("member"), non_members.raw("non-member"), seed=seed),
        likelihood=likelihood,
        roc=roc_of(member_scores, other_scores),
        bin_edges=tuple(edges.tolist()),
        member_counts=counts_in(member_scores, edges),
        non_member_counts=counts_in(other_scores, edges),
        control=None
        if positive_control is None
        else strongest_of(positive_control.calibrated, positive_control.likelihood),
        is_control_caught=caught,
    )


def membership_finding(result: MembershipResult, *, control: str = "") -> Finding:
    """The measurement as one finding among others.

    Args:
        result: What `membership_audit` answered.
        control: What the positive control was, in words.
    """
    point = result.claimed_point
    return Finding(
        part="membership",
        question="Can one tell from the release whether an example was trained on?",
        verdict=result.verdict,
        reason=result.reason,
        measured=point.true_positive_rate,
        unit=f"share of members found at {CLAIMED_AT_FPR:.1%} false alarms",
        interval=point.true_positive_interval,
        claimed=CLAIMED_RATE,
        sample_size=result.members + result.non_members,
        sample=f"{result.members} members and {result.non_members} others",
        control=control or "none was run",
        is_control_caught=result.is_control_caught,
        power=f"proves the claim in {result.power:.0%} of cases when the attack truly does no better than guessing",
        reading=f"below {CLAIMED_RATE:.1%} is the claim; a guess finds {CLAIMED_AT_FPR:.1%}",
        facts={"auc": result.calibrated.auc, "upper_bound": result.upper_bound}
        | ({} if result.control is None else {"control_auc": result.control.auc})
        | ({} if result.likelihood is None else {"likelihood_auc": result.likelihood.auc}),
    )


def strongest_of(calibrated: AttackFigures, likelihood: AttackFigures | None) -> AttackFigures:
    """The attack that finds more members at 0.1% false positives."""
    if likelihood is None or likelihood.points[0].hits <= calibrated.points[0].hits:
        return calibrated
    return likelihood


def power_to_pass(*, members: int, true_rate: float = _TRUE_RATE_FOR_POWER) -> float:
    """The chance that `members` members suffice to prove the claim when the attack truly finds `true_rate` of them."""
    most_hits = -1
    while most_hits < members and one_sided(most_hits + 1, members)[1] < CLAIMED_RATE:
        most_hits += 1
    return float(stats.binom.cdf(most_hits, members, true_rate)) if most_hits >= 0 else 0.0


def _judge(
    point: OperatingPoint, members: int, non_members: int, *, is_control_caught: bool | None
) -> tuple[Verdict, str, float]:
    """Verdict, reason, and the one-sided upper bound it rests on."""
    low, high = one_sided(point.hits, members)
    chance = one_sided(point.false_positives, non_members)[1]
    found = f"{point.hits} of {members} members found at {point.false_positives} of {non_members} false positives"
    if low > max(CLAIMED_RATE, chance):
        return Verdict.FAIL, f"{found}: at least {low:.2%} with 95% confidence, above {CLAIMED_RATE:.1%}", high
    if high >= CLAIMED_RATE:
        return (
            Verdict.INCONCLUSIVE,
            f"{found}: the true rate may be up to {high:.2%}, not below {CLAIMED_RATE:.1%}",
            high,
        )
    if non_members < round(1 / CLAIMED_AT_FPR):
        reason = f"{found}: {non_members} non-members cannot set a threshold for {CLAIMED_AT_FPR:.1%} false positives"
        return Verdict.INCONCLUSIVE, reason, high
    if is_control_caught is None:
        reason = (
            f"{found}: below {CLAIMED_RATE:.1%}, but no positive control shows that this attack finds a leak at all"
        )
        return Verdict.INCONCLUSIVE, reason, high
    if not is_control_caught:
        reason = f"{found}: below {CLAIMED_RATE:.1%}, but the attack missed the control, a run without noise"
        return Verdict.INCONCLUSIVE, reason, high
    return Verdict.PASS, f"{found}: at most {high:.2%} with 95% confidence, and the control was caught", high
