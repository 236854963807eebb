"""How much noise a budget buys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from privacy.accountant import epsilon_of_steps
from privacy.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Callable

_TICKS_PER_UNIT = 1000
_LARGEST_TICK = 100_000_000


def noise_multiplier_for(
    *, target_epsilon: float, target_delta: float, sampling_probability: float, steps: int
) -> float:
    """The smallest noise multiplier, in thousandths, with which `steps` steps cost at most `target_epsilon`.

    `steps` counts every noisy step that the budget must last for, over all rounds. What is returned was itself
    evaluated, so the target holds for it and not merely for something near it.

    Raises:
        CalibrationError: an argument is out of range, or no supported amount of noise is enough.
    """
    if not (0 < target_epsilon < math.inf and 0 < target_delta < 1 and 0 < sampling_probability <= 1 and steps >= 1):
        raise CalibrationError(
            f"cannot calibrate for epsilon {target_epsilon}, delta {target_delta}, sampling probability "
            f"{sampling_probability} and {steps} steps: epsilon and steps must be positive, the others in (0, 1]"
        )

    def cost(tick: int) -> float:
        return epsilon_of_steps(
            noise_multiplier=tick / _TICKS_PER_UNIT,
            sampling_probability=sampling_probability,
            steps=steps,
            target_delta=target_delta,
        )

    enough = _enough_without_sampling(target_epsilon, target_delta, steps)
    if enough > _LARGEST_TICK or cost(enough) > target_epsilon:
        raise CalibrationError(
            f"epsilon {target_epsilon} over {steps} steps needs a noise multiplier above "
            f"{min(enough, _LARGEST_TICK) / _TICKS_PER_UNIT:g}; plan fewer steps or a larger epsilon"
        )
    return _smallest_tick(cost, enough=enough, target=target_epsilon) / _TICKS_PER_UNIT


def noise_of(tick: int) -> float:
    """The noise multiplier that a tick stands for."""
    return tick / _TICKS_PER_UNIT


def least_tick(cost: Callable[[int], float], *, target: float) -> int:
    """The smallest tick whose `cost` is at most `target`; `cost` falls with the tick and is dear to ask.

    Raises:
        CalibrationError: None is, up to the largest that is supported.
    """
    enough = _TICKS_PER_UNIT
    while cost(enough) > target:
        enough *= 2
        if enough > _LARGEST_TICK:
            raise CalibrationError(f"no noise multiplier up to {_LARGEST_TICK / _TICKS_PER_UNIT:g} is enough")
    return _smallest_tick(cost, enough=enough, target=target)


def _enough_without_sampling(target_epsilon: float, target_delta: float, steps: int) -> int:
    """A tick that surely suffices: rho + 2 sqrt(rho ln 1/δ) = ε at rho = steps / (2 σ²).

    zCDP without credit for sampling, as in the accountant's closed bound.
    """
    log_term = math.log(1 / target_delta)
    # Written without a difference of nearly equal roots, which would cancel for a small target.
    root_rho = target_epsilon / (math.sqrt(log_term + target_epsilon) + math.sqrt(log_term))
    return math.ceil(math.sqrt(steps / 2) / root_rho * _TICKS_PER_UNIT) + 1


def _smallest_tick(cost: Callable[[int], float], *, enough: int, target: float) -> int:
    """The smallest tick whose cost is at most `target`, given one that is `enough`; `cost` falls with the tick.

    log(cost) is nearly a straight line over log(tick), so the Illinois variant of false position needs few of the
    costly evaluations (Dahlquist, Björck, Numerical Methods, 1974, section 6.3).
    """

    def excess(tick: int) -> float:
        return math.log(max(cost(tick), 1e-300) / target)

    above = enough // 2
    while above and (above_excess := excess(above)) <= 0:
        enough, above = above, above // 2
    if not above:
        return enough
    enough_excess = excess(enough)
    last_was_enough: bool | None = None
    while enough - above > 1:
        width = math.log(enough / above)
        guess = round(above * math.exp(width * above_excess / (above_excess - enough_excess)))
        guess = min(max(guess, above + 1), enough - 1)
        value = excess(guess)
        is_enough = value <= 0
        if is_enough:
            enough, enough_excess = guess, min(value, -1e-12)
        else:
            above, above_excess = guess, value
        if is_enough is last_was_enough:
            # The same end moved twice: halve the weight of the other, or it would never move.
            above_excess, enough_excess = (
                (above_excess / 2, enough_excess) if is_enough else (above_excess, enough_excess / 2)
            )
        last_was_enough = is_enough
    return enough
