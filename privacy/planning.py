"""What a run would cost: noise for a budget, a budget for a noise, and what to change where it does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.accountant import epsilon_of_steps
from privacy.calibration import noise_multiplier_for
from privacy.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Callable

# No device has so many more examples than another.
_MOST_TIMES_EXAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one device does in each of its rounds."""

    examples: int
    batch_size: int
    steps: int
    rounds: int

    def __post_init__(self) -> None:
        if min(self.examples, self.batch_size, self.steps, self.rounds) < 1:
            raise CalibrationError(f"examples, batch size, steps and rounds must be at least 1: {self}")

    @property
    def sampling_probability(self) -> float:
        """The chance of an example to enter a step."""
        return min(self.batch_size / self.examples, 1.0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training, its noise, and ε after each of its rounds."""

    training: Training
    noise_multiplier: float
    target_delta: float
    epsilon_after: tuple[float, ...]

    @property
    def epsilon(self) -> float:
        """ε after the last round."""
        return self.epsilon_after[-1]


def plan_for_budget(training: Training, *, target_epsilon: float, target_delta: float) -> Plan:
    """The least noise with which all rounds stay within a budget.

    Raises:
        CalibrationError: no noise is enough, or a value is out of range.
    """
    noise = noise_multiplier_for(
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        sampling_probability=training.sampling_probability,
        steps=training.steps * training.rounds,
    )
    return plan_with_noise(training, noise_multiplier=noise, target_delta=target_delta)


def plan_with_noise(training: Training, *, noise_multiplier: float, target_delta: float) -> Plan:
    """What the rounds cost with a noise that is given."""
    return Plan(
        training=training,
        noise_multiplier=noise_multiplier,
        target_delta=target_delta,
        epsilon_after=tuple(
            _cost(training, rounds, noise_multiplier, target_delta) for rounds in range(1, training.rounds + 1)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """Single changes with which a plan fits a budget; None where that change alone cannot do it."""

    noise_multiplier: float | None
    rounds: int | None
    batch_size: int | None
    examples: int | None


def alternatives(plan: Plan, *, target_epsilon: float) -> Alternatives:
    """What could be changed, one thing at a time, so that a plan costs at most `target_epsilon`."""
    training, noise, delta = plan.training, plan.noise_multiplier, plan.target_delta

    def fits(**changes: int) -> bool:
        changed = Training(**{**_fields(training), **changes})
        return _cost(changed, changed.rounds, noise, delta) <= target_epsilon

    try:
        enough = plan_for_budget(training, target_epsilon=target_epsilon, target_delta=delta).noise_multiplier
    except CalibrationError:
        enough = None
    return Alternatives(
        noise_multiplier=enough,
        rounds=_largest(lambda rounds: fits(rounds=rounds), most=training.rounds),
        batch_size=_largest(lambda batch_size: fits(batch_size=batch_size), most=training.batch_size),
        examples=_smallest(lambda examples: fits(examples=examples), least=training.examples),
    )


def _fields(training: Training) -> dict[str, int]:
    return {
        "examples": training.examples,
        "batch_size": training.batch_size,
        "steps": training.steps,
        "rounds": training.rounds,
    }


def _cost(training: Training, rounds: int, noise_multiplier: float, target_delta: float) -> float:
    return epsilon_of_steps(
        noise_multiplier=noise_multiplier,
        sampling_probability=training.sampling_probability,
        steps=training.steps * rounds,
        target_delta=target_delta,
    )


def _largest(fits: Callable[[int], bool], *, most: int) -> int | None:
    """The largest number up to `most` that fits, where smaller ones fit as well; None if not even 1 does."""
    if not fits(1):
        return None
    low, high = 1, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _smallest(fits: Callable[[int], bool], *, least: int) -> int | None:
    """The smallest number from `least` on that fits, where larger ones fit as well; None if none within reason does."""
    high = least
    while not fits(high):
        high *= 2
        if high > least * _MOST_TIMES_EXAMPLES:
            return None
    low = max(high // 2, least - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
