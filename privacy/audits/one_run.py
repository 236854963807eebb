"""How much ε a single run gave away, from guesses about many canaries that were put in or left out by fair coins.

Two bounds. `one_run_epsilon` holds for any (ε, δ) mechanism (Steinke, Nasr, Jagielski, "Privacy Auditing with One (1)
Training Run", NeurIPS 2023, theorem 5.2). `one_run_epsilon_if_gaussian` is for mechanisms whose trade-off between
errors is a Gaussian's (Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run", 2024, algorithm 3):
larger, and right only as far as that assumption is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import optimize, special, stats

from privacy.audits.finding import CONFIDENCE
from privacy.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_LARGEST: Final = 50.0
_PRECISION: Final = 1e-4
# Shares of the canaries that are guessed, the surest ones; more choices would cost more of the confidence.
_SHARES: Final = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class Guesses:
    """So many of `canaries` were guessed, `correct` of them rightly."""

    canaries: int
    guessed: int
    correct: int


@dataclass(frozen=True)
class LowerBounds:
    """ε that the run gave away at the least, with the stated confidence; 0 says nothing."""

    any_mechanism: float
    if_gaussian: float
    best: Guesses

    @property
    def largest(self) -> float:
        """The larger one, for mechanisms that are sums with Gaussian noise."""
        return max(self.any_mechanism, self.if_gaussian)


def one_run_bounds(
    scores: NDArray[np.float64], is_in: NDArray[np.bool_], *, target_delta: float, confidence: float = CONFIDENCE
) -> LowerBounds:
    """Bounds from scores: the higher, the more likely a canary was put in.

    The surest guesses count, a share of the canaries that is chosen by the result; what choosing wins is paid for by
    dividing the probability of error by the number of choices (Bonferroni).

    Args:
        scores: One a canary, shape (canaries,).
        is_in: Whether it was put in, each by a fair coin of its own, shape (canaries,).
        target_delta: δ at which ε is bounded.
        confidence: Probability that each bound holds.

    Raises:
        AuditError: Shapes differ, a score is not finite, or there is no canary.
    """
    if scores.shape != is_in.shape or scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
        raise AuditError(f"canaries need one finite score each: {scores.shape} scores for {is_in.shape} canaries")
    choices = tuple(_choices(scores, is_in))
    error = (1 - confidence) / len(choices)
    general = [one_run_epsilon(choice, target_delta=target_delta, error=error) for choice in choices]
    gaussian = [one_run_epsilon_if_gaussian(choice, target_delta=target_delta, error=error) for choice in choices]
    return LowerBounds(max(general), max(gaussian), choices[int(np.argmax(general))])


def one_run_epsilon(guesses: Guesses, *, target_delta: float, error: float) -> float:
    """The largest ε at which so many right guesses have probability below `error`; 0 where none is refuted."""
    return _largest_refuted(lambda epsilon: _p_value(guesses, epsilon, target_delta) < error)


def one_run_epsilon_if_gaussian(guesses: Guesses, *, target_delta: float, error: float) -> float:
    """The same for mechanisms that are as private as one Gaussian: ε(δ) of the largest μ that is refuted."""
    mu = _largest_refuted(lambda mu: _refutes_gaussian(guesses, mu, error))
    return epsilon_of_mu(mu, target_delta)


def most_that_can_be_shown(canaries: int, *, target_delta: float, confidence: float = CONFIDENCE) -> float:
    """The bound if every single guess were right: an ε above it can never be refuted with so many canaries."""
    error = (1 - confidence) / (2 * len(_SHARES))
    return one_run_epsilon(Guesses(canaries, canaries, canaries), target_delta=target_delta, error=error)


def epsilon_of_mu(mu: float, target_delta: float) -> float:
    """ε at δ of the Gaussian mechanism whose two outcomes lie μ standard deviations apart (Balle, Wang 2018)."""
    if mu <= 0:
        return 0.0

    def delta_at(epsilon: float) -> float:
        first = stats.norm.cdf(mu / 2 - epsilon / mu)
        return float(first - math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)))

    if delta_at(0.0) <= target_delta:
        return 0.0
    high = mu * mu / 2 + 10 * mu
    return float(optimize.brentq(lambda epsilon: delta_at(epsilon) - target_delta, 0.0, high, xtol=1e-9))


def _choices(scores: NDArray[np.float64], is_in: NDArray[np.bool_]) -> Iterator[Guesses]:
    """Each share, guessed from both ends, and from the top alone."""
    by_score = is_in[np.argsort(scores, kind="stable")]
    for share in _SHARES:
        half = max(1, int(share * scores.size) // 2)
        low, high = by_score[:half], by_score[-half:]
        yield Guesses(scores.size, 2 * half, int((~low).sum() + high.sum()))
        top = by_score[-max(1, int(share * scores.size)) :]
        yield Guesses(scores.size, top.size, int(top.sum()))


def _p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Probability of at least so many right guesses under (ε, δ); theorem 5.2, with its maximum over i."""
    rate = 1 / (1 + math.exp(-epsilon))
    correct, guessed = guesses.correct, guesses.guessed
    reached = float(stats.binom.sf(correct - 1, guessed, rate))
    if delta == 0 or correct == 0:
        return reached
    below = np.arange(1, correct + 1)
    gained = stats.binom.sf(correct - 1 - below, guessed, rate) - reached
    return min(1.0, reached + 2 * guesses.canaries * delta * float((gained / below).max()))


def _refutes_gaussian(guesses: Guesses, mu: float, error: float) -> bool:
    """Whether so many right guesses have probability below `error` when outcomes lie μ apart.

    Backwards from the assumption that they have just that probability: what then at least must have been guessed
    right, and wrong, with one right guess fewer; a total above the number of guesses is a contradiction.
    """
    right = error * guesses.correct / guesses.canaries
    wrong = error * (guesses.guessed - guesses.correct) / guesses.canaries
    for count in range(guesses.correct - 1, -1, -1):
        # The most that a μ apart turns a probability into; its inverse bounds wrong guesses from below.
        least = float(special.ndtr(special.ndtri(min(right, 1.0)) - mu))
        if least <= wrong:
            return False  # nothing changes from here on
        right += count / (guesses.guessed - count) * (least - wrong)
        wrong = least
        if right + wrong > guesses.guessed / guesses.canaries:
            return True
    return False


def _largest_refuted(is_refuted: Callable[[float], bool]) -> float:
    """By bisection: refuting grows harder with its argument."""
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):
        low, high = high, 2 * high
        if low > _LARGEST:
            return low
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
