"""ε from events alone, by composing privacy loss distributions.

Source: Koskela, Jälkö, Honkela, "Computing Tight Differential Privacy Guarantees Using FFT", AISTATS 2020; Doroshenko
et al., "Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions", PoPETs 2022. Neighbouring
relation: one example added or removed. Every figure is an upper bound: the discretisation rounds against the claim
(noticeably only where ε is below about 0.1).
"""

from __future__ import annotations

import math
from functools import lru_cache, reduce
from importlib.metadata import version
from typing import TYPE_CHECKING

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution as pld

from privacy.errors import UnknownEventError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from privacy.event import PrivacyEvent

VALUE_DISCRETIZATION = 1e-3
ACCOUNTANT = (
    f"PLD, dp-accounting {version('dp-accounting')}, add-or-remove-one, discretisation {VALUE_DISCRETIZATION:g}"
)
MECHANISM = "poisson_subsampled_gaussian"

# The most buckets between 0 and ε. Only a guarantee that is none (ε beyond 250) ever gets a coarser grid, so that a
# hostile contribution with next to no noise cannot occupy the server for minutes.
_MAX_BUCKETS = 250_000
# Below this the distributions overflow; ε is in the thousands, and the closed bound says so as well.
_SMALLEST_NOISE = 0.01

# (sampling probability, noise multiplier, steps): what of an event its cost depends on.
Group = tuple[float, float, int]


def epsilon(events: Iterable[PrivacyEvent], *, target_delta: float) -> float:
    """ε at `target_delta` after all `events`, composed as if each had used the same examples.

    Give the events of one device: different devices hold different examples, so their costs are never added up
    (`epsilon_by_device`). No events cost 0; an event without noise costs infinity.

    Raises:
        UnknownEventError: an event's mechanism or privacy unit cannot be accounted for.
    """
    return _epsilon_of_groups(groups_of(events), _checked_delta(target_delta))


def epsilon_by_device(events: Iterable[PrivacyEvent], *, target_delta: float) -> dict[str, float]:
    """ε per example of each device over its own events, by device id in sorted order.

    Events per user are another unit and are left to `privacy.user_level`.

    Raises:
        UnknownEventError: an event's mechanism or privacy unit cannot be accounted for.
    """
    by_device: dict[str, list[PrivacyEvent]] = {}
    for event in events:
        if event.device_id is not None:
            by_device.setdefault(event.device_id, []).append(event)
    return {device: epsilon(own, target_delta=target_delta) for device, own in sorted(by_device.items())}


def epsilon_curve(events: Iterable[PrivacyEvent], deltas: Sequence[float]) -> tuple[float, ...]:
    """ε at each of `deltas` for the same composed events.

    Raises:
        UnknownEventError: an event's mechanism or privacy unit cannot be accounted for.
    """
    groups = groups_of(events)
    return tuple(_epsilon_of_groups(groups, _checked_delta(delta)) for delta in deltas)


def epsilon_of_steps(*, noise_multiplier: float, sampling_probability: float, steps: int, target_delta: float) -> float:
    """ε of `steps` equal noisy steps: the planning counterpart of `epsilon`, with the same arithmetic."""
    return _epsilon_of_groups(((sampling_probability, noise_multiplier, steps),), _checked_delta(target_delta))


def epsilon_of_groups(groups: Iterable[Group], *, target_delta: float) -> float:
    """ε of (sampling probability, noise multiplier, steps) composed, for units whose mechanisms come down to these."""
    return _epsilon_of_groups(tuple(sorted(groups)), _checked_delta(target_delta))


def _checked_delta(target_delta: float) -> float:
    if not 0 < target_delta < 1:
        raise ValueError(f"target_delta must lie between 0 and 1, not {target_delta}")
    return target_delta


def groups_of(events: Iterable[PrivacyEvent]) -> tuple[Group, ...]:
    """Events per example as (sampling probability, noise multiplier, steps).

    Equal steps are together: composing n equal steps at once costs as much as composing one.

    Raises:
        UnknownEventError: an event's mechanism or privacy unit cannot be accounted for.
    """
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        if event.mechanism != MECHANISM or event.privacy_unit != "example":
            raise UnknownEventError(
                f"event {event.event_id}: cannot account for {event.mechanism!r} per {event.privacy_unit!r}"
            )
        key = (event.sampling_probability, event.noise_multiplier)
        steps[key] = steps.get(key, 0) + event.steps
    return tuple(sorted((q, sigma, count) for (q, sigma), count in steps.items()))


@lru_cache(maxsize=4096)
def _epsilon_of_groups(groups: tuple[Group, ...], target_delta: float) -> float:
    if not groups:
        return 0.0
    smallest_noise = min(sigma for _, sigma, _ in groups)
    if smallest_noise <= 0:
        return math.inf
    bound = _closed_bound(groups, target_delta)
    if smallest_noise < _SMALLEST_NOISE:
        return bound
    interval = VALUE_DISCRETIZATION if bound <= VALUE_DISCRETIZATION * _MAX_BUCKETS else bound * 1e-5
    while True:
        value = _composed_epsilon(groups, target_delta, interval)
        finest = max(VALUE_DISCRETIZATION, value / _MAX_BUCKETS)
        if interval <= 2 * finest:  # near enough; exactly there would be approached in ever smaller steps
            return value
        interval = finest


def _composed_epsilon(groups: tuple[Group, ...], target_delta: float, interval: float) -> float:
    return float(_composed(groups, interval).get_epsilon_for_delta(target_delta))


# A distribution holds up to a megabyte, and making one takes a tenth of a second: keep what a report or a round asks
# for again (other deltas, the same event with more events), but few enough for a small device.
@lru_cache(maxsize=32)
def _composed(groups: tuple[Group, ...], interval: float) -> pld.PrivacyLossDistribution:
    """The privacy loss of all groups together."""
    return reduce(pld.PrivacyLossDistribution.compose, (_steps(*group, interval) for group in groups))


@lru_cache(maxsize=32)
def _steps(
    sampling_probability: float, noise_multiplier: float, steps: int, interval: float
) -> pld.PrivacyLossDistribution:
    if sampling_probability < 1:
        return _step(sampling_probability, noise_multiplier, interval).self_compose(steps)
    return _step(1.0, noise_multiplier / math.sqrt(steps), interval)  # exact, where nothing is sampled


@lru_cache(maxsize=32)
def _step(sampling_probability: float, noise_multiplier: float, interval: float) -> pld.PrivacyLossDistribution:
    return pld.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=sampling_probability,
        value_discretization_interval=interval,
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def _closed_bound(groups: tuple[Group, ...], target_delta: float) -> float:
    """An upper bound that needs no distribution: rho-zCDP, no credit for sampling (Bun, Steinke 2016, Prop. 1.3)."""
    rho = sum(steps / (2 * sigma**2) for _, sigma, steps in groups)
    return rho + 2 * math.sqrt(rho * math.log(1 / target_delta))
