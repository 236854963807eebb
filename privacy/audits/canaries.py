"""Canaries in a mechanism: what one contribution moves, how much noise there is, and what could be guessed.

A canary is a direction of its own, put in or left out by a fair coin, and drawn in each step as the mechanism draws.
What the mechanism then released along all directions shows three things that it promised: along the directions that
were left out there is noise alone, of the stated size; along the others one participation moves the sum by a clipping
norm at most; and who was in can be guessed no better than ε allows (`privacy.audits.one_run`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import stats

from privacy.audits.finding import CERTAINTY, CONFIDENCE, Finding, Interval, Verdict
from privacy.audits.one_run import LowerBounds, most_that_can_be_shown, one_run_bounds
from privacy.errors import AuditError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.event import PrivacyUnit

# How far off a promise may be and still go unseen, for an audit that passes.
_TOLERANCE: Final = 0.15
_DOUBLE: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class CanaryRun:
    """What a mechanism released along canary directions, in the units of its sum (nothing is divided).

    Attributes:
        released: The noisy sum along each direction in each step, shape (steps, canaries).
        took_part: Whether a canary was drawn in a step, shape (steps, canaries), bool.
        is_in: Which canaries were put in, shape (canaries,), bool.
        clipping_norms: What one contribution may move the sum by, a step, shape (steps,).
        noise_stddevs: What was promised a step, shape (steps,).
    """

    released: NDArray[np.float64]
    took_part: NDArray[np.bool_]
    is_in: NDArray[np.bool_]
    clipping_norms: NDArray[np.float64]
    noise_stddevs: NDArray[np.float64]

    def __post_init__(self) -> None:
        steps, canaries = self.released.shape
        shapes = (self.took_part.shape, self.is_in.shape, self.clipping_norms.shape, self.noise_stddevs.shape)
        if shapes != ((steps, canaries), (canaries,), (steps,), (steps,)):
            raise AuditError(f"{steps} steps over {canaries} canaries do not go with shapes {shapes}")
        if not np.isfinite(self.released).all():
            raise AuditError("the mechanism released values that are not finite; it may have diverged")
        if (self.took_part & ~self.is_in).any():
            raise AuditError("a canary that was left out took part")

    @property
    def scores(self) -> NDArray[np.float64]:
        """The higher, the more likely a canary was in: each step counts as much as its noise allows."""
        weights = self.clipping_norms / np.maximum(self.noise_stddevs, 1e-12 * self.clipping_norms) ** 2
        return np.asarray((self.released * weights[:, None]).sum(axis=0), dtype=np.float64)

    @property
    def noise(self) -> NDArray[np.float64]:
        """Released values over the promised standard deviation, along directions that were left out."""
        return np.asarray((self.released[:, ~self.is_in] / self.noise_stddevs[:, None]).ravel(), dtype=np.float64)

    @property
    def movements(self) -> NDArray[np.float64]:
        """Released values over the clipping norm, for each canary in each step that it took part in."""
        return np.asarray((self.released / self.clipping_norms[:, None])[self.took_part], dtype=np.float64)


def canary_findings(
    run: CanaryRun, control: CanaryRun, *, unit: PrivacyUnit, claimed_epsilon: float, target_delta: float
) -> tuple[Finding, Finding, Finding]:
    """Three findings, on noise, clipping and ε, of one run and of the same one made faulty on purpose.

    Args:
        run: The mechanism as it is.
        control: The same without noise and clipping; its promises are those of `run`.
        unit: Whose guarantee is held against the claim.
        claimed_epsilon: What the accountant says that all of these steps cost.
        target_delta: At this δ.
    """
    return (
        noise_finding(run, control, unit=unit),
        clipping_finding(run, control, unit=unit),
        epsilon_finding(run, control, unit=unit, claimed_epsilon=claimed_epsilon, target_delta=target_delta),
    )


def noise_finding(run: CanaryRun, control: CanaryRun, *, unit: PrivacyUnit) -> Finding:
    """Is there as much noise as was promised? A variance is measured, so its interval is a chi-square's."""
    seen, interval = _spread(run.noise, CONFIDENCE)
    caught = _spread(control.noise, 2 * CERTAINTY - 1)[1][1] < 1
    low, high = _spread(run.noise, 2 * CERTAINTY - 1)[1]
    found = f"the noise was {seen:.3f} times what was promised"
    is_sharp = high - low < 2 * _TOLERANCE
    if high < 1:
        verdict, reason = Verdict.FAIL, f"{found}, and surely less than {high:.3f} times"
    elif not caught or not is_sharp:
        why = "the control without noise was not noticed" if not caught else "too few values to say more"
        verdict, reason = Verdict.INCONCLUSIVE, f"{found}; {why}"
    else:
        verdict, reason = Verdict.PASS, found
    return Finding(
        part=f"noise-{unit}",
        question="Is there as much noise as the ledger says?",
        verdict=verdict,
        reason=reason,
        measured=seen,
        unit="times the promised standard deviation",
        interval=interval,
        claimed=1.0,
        sample_size=run.noise.size,
        sample=f"{run.noise.size} values along {int((~run.is_in).sum())} directions that nothing moved",
        control="the same without noise",
        is_control_caught=caught,
        power=f"sees noise that is {_least_seen_deficit(run.noise.size):.0%} too small, or more, in half of all cases",
        reading="1 is what was promised; less protects less than ε says",
    )


def clipping_finding(run: CanaryRun, control: CanaryRun, *, unit: PrivacyUnit) -> Finding:
    """Does one contribution move the sum by a clipping norm at most? Each canary tries to move it a hundred times."""
    moved, interval = _mean(run.movements, CONFIDENCE)
    low, high = _mean(run.movements, 2 * CERTAINTY - 1)[1]
    caught = _mean(control.movements, 2 * CERTAINTY - 1)[1][0] > 1
    found = f"one participation moved the sum by {moved:.3f} clipping norms on average"
    if low > 1 + 1e-6:
        verdict, reason = Verdict.FAIL, f"{found}, and surely more than {low:.3f}"
    elif not caught or high >= _DOUBLE:
        why = "the control without clipping was not noticed" if not caught else "too few participations to say more"
        verdict, reason = Verdict.INCONCLUSIVE, f"{found}; {why}"
    else:
        verdict, reason = Verdict.PASS, found
    return Finding(
        part=f"clipping-{unit}",
        question=f"Is the influence of one {unit} bounded as the ledger says?",
        verdict=verdict,
        reason=reason,
        measured=moved,
        unit="clipping norms a participation",
        interval=interval,
        claimed=1.0,
        sample_size=run.movements.size,
        sample=f"{run.movements.size} participations of canaries whose own size is many times the bound",
        control="the same without clipping",
        is_control_caught=caught,
        power=f"sees an influence above {1 + (high - low) / 2:.2f} clipping norms in half of all cases",
        reading="1 is the bound; a larger one makes every ε of the ledger too small",
    )


def epsilon_finding(
    run: CanaryRun, control: CanaryRun, *, unit: PrivacyUnit, claimed_epsilon: float, target_delta: float
) -> Finding:
    """Does what was released give away more than ε allows? A lower bound is held against the claimed upper one."""
    shown = one_run_bounds(run.scores, run.is_in, target_delta=target_delta)
    of_control = one_run_bounds(control.scores, control.is_in, target_delta=target_delta)
    caught = of_control.largest > claimed_epsilon
    most = most_that_can_be_shown(run.is_in.size, target_delta=target_delta)
    verdict, reason = _judge_epsilon(shown, claimed_epsilon, is_control_caught=caught)
    return Finding(
        part=f"one-run-{unit}",
        question="Does the run give away more than ε allows?",
        verdict=verdict,
        reason=reason,
        measured=shown.any_mechanism,
        unit=f"ε at δ = {target_delta:g}, at least",
        interval=(shown.any_mechanism, math.inf),
        claimed=claimed_epsilon,
        sample_size=run.is_in.size,
        sample=f"{run.is_in.size} canaries, each in or out by a fair coin; {shown.best.guessed} guessed",
        control="the same without noise and clipping",
        is_control_caught=caught,
        power=f"with so many canaries no bound above {most:.2f} can come out for an unknown mechanism"
        + (", which is below the claim" if most < claimed_epsilon else ""),
        reading="a bound above the claimed ε refutes it; a low one proves nothing, because attacks are not perfect",
        facts={"if_gaussian": shown.if_gaussian, "correct": shown.best.correct, "guessed": shown.best.guessed},
    )


def _judge_epsilon(shown: LowerBounds, claimed: float, *, is_control_caught: bool) -> tuple[Verdict, str]:
    # 95% are enough to fail here: both bounds give so much away that they are far from the truth (see the tests).
    found = f"at least ε = {shown.any_mechanism:.2f} was given away ({shown.if_gaussian:.2f} if Gaussian)"
    if shown.largest > claimed:
        return Verdict.FAIL, f"{found}; the ledger says {claimed:.2f}"
    if not is_control_caught:
        return Verdict.INCONCLUSIVE, f"{found}; even the run without noise could not refute ε = {claimed:.2f}"
    return Verdict.PASS, f"{found}, not above the ledger's {claimed:.2f}"


def _spread(values: NDArray[np.float64], confidence: float) -> tuple[float, Interval]:
    """Standard deviation about zero, and its interval, if the values are normal."""
    count = values.size
    if count == 0:
        raise AuditError("no canary was left out: there is nothing to measure the noise along")
    total = float((values**2).sum())
    tail = (1 - confidence) / 2
    low = math.sqrt(total / float(stats.chi2.ppf(1 - tail, count)))
    high = math.sqrt(total / float(stats.chi2.ppf(tail, count)))
    return math.sqrt(total / count), (low, high)


def _mean(values: NDArray[np.float64], confidence: float) -> tuple[float, Interval]:
    if values.size <= 1:
        raise AuditError("no canary took part twice: use more canaries, or more steps")
    mean = float(values.mean())
    half = (
        float(stats.t.ppf((1 + confidence) / 2, values.size - 1)) * float(values.std(ddof=1)) / math.sqrt(values.size)
    )
    return mean, (mean - half, mean + half)


def _least_seen_deficit(count: int) -> float:
    """How much too small noise must be to be refuted in half of all cases."""
    return 1 - math.sqrt(float(stats.chi2.ppf(1 - CERTAINTY, count)) / count)
