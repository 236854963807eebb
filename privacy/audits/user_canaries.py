"""Devices that do not exist, among the devices of a round: what the noisy sum over users shows of each.

Each canary device sends a hundred clipping norms in a direction of its own. The mechanism under audit clips it, adds
it to the others, and adds its noise, as in every round: `privacy.mechanism.noisy_average`, or for noise in shares the
devices' own clipping and rounding and as many of their shares as are counted on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from privacy.audits.canaries import CanaryRun
from privacy.banded_matrix import coefficients
from privacy.banded_noise import BandedNoise
from privacy.errors import AuditError
from privacy.mechanism import noisy_average
from privacy.randomness import SystemRandom
from privacy.skellam_sum import average_in_levels, noise_of_shares

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from privacy.event import PrivacyEvent

_LENGTH: Final = 100.0
_NAME: Final = "canaries"
# Any number: the sum is what is looked at, and every divisor is taken out again.
_DIVISOR: Final = 16
_KEY_BYTES: Final = 32


class NoisyAverage(Protocol):
    """`privacy.mechanism.noisy_average`, or what stands in its place in a test."""

    def __call__(
        self,
        updates: Iterable[Mapping[str, npt.NDArray[np.floating]]],
        *,
        shapes: Mapping[str, tuple[int, ...]],
        clipping_norm: float,
        noise_multiplier: float,
        expected_contributions: int,
        unit_noise: npt.NDArray[np.float64],
    ) -> Mapping[str, npt.NDArray[np.float64]]:
        """One round's noisy average."""


def user_canary_run(
    events: Sequence[PrivacyEvent],
    *,
    canaries: int,
    participations: int,
    random: np.random.Generator,
    average: NoisyAverage | None = None,
    is_faulty: bool = False,
) -> CanaryRun:
    """Do again the noisy sums that `events` tell of, with canary devices alone.

    Where the cohort was Poisson, each canary device that is in is drawn in each round as the event says. Where it was
    fixed, it takes part in `participations` rounds, as the costliest real device did, spread over them. Of banded
    noise, the correlation is taken out again before anything is measured: whoever sees all rounds can do that.

    Args:
        events: The population's events of one run, in order.
        canaries: How many; each is put in by a fair coin.
        participations: Of the costliest device, for fixed cohorts.
        random: For coins and draws; the noise comes from the system's generator.
        average: The mechanism under audit; that of the events unless given.
        is_faulty: Do it without noise and without clipping, as a control.

    Raises:
        AuditError: The events are of several runs or are not about users.
    """
    if len({event.run_id for event in events}) != 1 or any(event.privacy_unit != "user" for event in events):
        raise AuditError("canary devices need the user-level events of one run")
    is_in = random.random(canaries) < 0.5  # noqa: PLR2004 - a fair coin
    drawn = _draws(events, is_in, participations, random)
    noise = _UnitNoise(events)
    released = [
        _one_round(event, took_part, noise.at(event, canaries), average or mechanism_of(event), is_faulty=is_faulty)
        for event, took_part in zip(events, drawn, strict=True)
    ]
    norms = np.array([event.clipping_norm for event in events])
    stddevs = norms * np.array([event.noise_multiplier for event in events])
    return CanaryRun(
        released=noise.taken_apart(np.stack(released) / norms[:, None]) * norms[:, None],
        took_part=drawn,
        is_in=is_in,
        clipping_norms=norms * noise.own_share,
        noise_stddevs=stddevs,
    )


def mechanism_of(event: PrivacyEvent) -> NoisyAverage:
    """What made the noisy sum that an event tells of."""
    if event.shares is None:
        return noisy_average
    levels = event.shares.levels

    def summed(
        updates: Iterable[Mapping[str, npt.NDArray[np.floating]]],
        *,
        shapes: Mapping[str, tuple[int, ...]],
        clipping_norm: float,
        noise_multiplier: float,
        expected_contributions: int,
        unit_noise: npt.NDArray[np.float64],
    ) -> Mapping[str, npt.NDArray[np.float64]]:
        """As devices do it, in whole numbers; the masks are left out, as they cancel."""
        return average_in_levels(
            updates,
            shapes=shapes,
            clipping_norm=clipping_norm,
            levels=levels,
            noise=np.rint(unit_noise * noise_multiplier * levels).astype(np.int64),
            expected_contributions=expected_contributions,
            random=SystemRandom(),
        )

    return summed


def _draws(
    events: Sequence[PrivacyEvent], is_in: npt.NDArray[np.bool_], participations: int, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which canary takes part in which round, shape (rounds, canaries)."""
    rounds = len(events)
    if events[0].cohort_rule == "poisson":
        chances = np.array([event.sampling_probability for event in events])
        return (random.random((rounds, is_in.size)) < chances[:, None]) & is_in
    times = max(1, min(participations, rounds))
    gap = rounds // times
    first = random.integers(max(1, rounds - gap * (times - 1)), size=is_in.size)
    drawn = np.zeros((rounds, is_in.size), dtype=np.bool_)
    for turn in range(times):
        drawn[first + turn * gap, np.arange(is_in.size)] = True
    return drawn & is_in


def _one_round(
    event: PrivacyEvent,
    took_part: npt.NDArray[np.bool_],
    unit_noise: npt.NDArray[np.float64],
    average: NoisyAverage,
    *,
    is_faulty: bool,
) -> npt.NDArray[np.float64]:
    length = _LENGTH * event.clipping_norm
    updates = []
    for index in took_part.nonzero()[0]:
        update = np.zeros(took_part.size)
        update[index] = length
        updates.append({_NAME: update})
    found = average(
        updates,
        shapes={_NAME: (took_part.size,)},
        clipping_norm=2 * length if is_faulty else event.clipping_norm,
        noise_multiplier=0.0 if is_faulty else event.noise_multiplier,
        expected_contributions=_DIVISOR,
        unit_noise=unit_noise,
    )
    return np.asarray(found[_NAME], dtype=np.float64) * _DIVISOR


class _UnitNoise:
    """The noise of the rounds, as the mechanism has it, and what undoes its correlation."""

    def __init__(self, events: Sequence[PrivacyEvent]) -> None:
        self._bands = events[0].bands
        self._system = SystemRandom()
        key = self._system.words(_KEY_BYTES // 8).tobytes()
        self._banded = None if self._bands is None else BandedNoise(key, bands=self._bands)
        self._round = 0

    @property
    def own_share(self) -> float:
        """How far one participation moves its own round, after `taken_apart`, in clipping norms."""
        return 1.0 if self._bands is None else float(coefficients(self._bands)[0])

    def at(self, event: PrivacyEvent, count: int) -> npt.NDArray[np.float64]:
        self._round += 1
        if event.shares is not None:
            # As few as are promised: whatever more there is in a real sum is not counted on.
            counted = event.shares.counted
            total = noise_of_shares(count, shares=event.shares, devices=counted, random=self._system)
            return np.asarray(total / math.sqrt(event.shares.variance), dtype=np.float64)
        return self._system.normals(count) if self._banded is None else self._banded.at(self._round, count=count)

    def taken_apart(self, released: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """C y for released y = x + C^-1 z: independent noise again; shape (rounds, canaries)."""
        if self._bands is None:
            return released
        column, apart = coefficients(self._bands), np.zeros_like(released)
        for lag, coefficient in enumerate(column[: len(released)]):
            apart[lag:] += coefficient * released[: len(released) - lag]
        return apart
