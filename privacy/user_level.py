"""ε per user, from the events of one population alone.

Two users' datasets are neighbours when one user's whole contribution, in all rounds and runs, is added or removed.

- A Poisson-sampled sum costs every user the same, whether drawn or not (amplification by sampling).
- A sum over a fixed cohort costs only who took part, once for each participation, with no credit for chance.
- Banded noise costs who took part by the overlap of its own rounds in a run (`privacy.banded_noise.sensitivity`).

What a population is charged is the bill of its costliest user. It is never added to anything per example.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from privacy.accountant import epsilon_of_groups
from privacy.banded_noise import sensitivity
from privacy.errors import UnknownEventError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from privacy.accountant import Group
    from privacy.event import PrivacyEvent

# Of a run's banded noise: the run, the noise multiplier, the bands.
_Band = tuple[str, float, int]


@dataclass
class Bill:
    """What one user is charged for: equal Gaussian sums by (sampling probability, noise multiplier), and bands."""

    sums: Counter[tuple[float, float]] = field(default_factory=Counter)
    bands: dict[_Band, list[int]] = field(default_factory=lambda: defaultdict(list))

    def groups(self) -> tuple[Group, ...]:
        """The same in the accountant's terms, sorted."""
        steps = self.sums.copy()
        for (_, noise_multiplier, bands), rounds in self.bands.items():
            steps[1.0, noise_multiplier / sensitivity(rounds, bands=bands)] += 1
        return tuple(sorted((q, sigma, count) for (q, sigma), count in steps.items()))


def user_epsilon(events: Iterable[PrivacyEvent], *, target_delta: float, is_drawing_secret: bool = True) -> float:
    """ε of the costliest user of one population at `target_delta`, after all `events`.

    Args:
        events: Everything recorded about the population.
        target_delta: δ.
        is_drawing_secret: Against whom: True, who sees releases only; False, who knows who was drawn in each round
            (the operator, a reader of this ledger, whoever watches the network). Sampling amplifies nothing then.

    Raises:
        UnknownEventError: An event is not per user, is of another population, or cannot be accounted for.
    """
    bills = bills_of(events, is_drawing_secret=is_drawing_secret)
    return max(epsilon_of_groups(groups, target_delta=target_delta) for groups in {b.groups() for b in bills.values()})


def epsilon_by_population(events: Iterable[PrivacyEvent], *, target_delta: float) -> dict[str, float]:
    """ε of each population's costliest user, by population in sorted order; events per example are left out."""
    found: dict[str, list[PrivacyEvent]] = defaultdict(list)
    for event in events:
        if event.population is not None:
            found[event.population].append(event)
    return {name: user_epsilon(own, target_delta=target_delta) for name, own in sorted(found.items())}


def bills_of(events: Iterable[PrivacyEvent], *, is_drawing_secret: bool = True) -> dict[str | None, Bill]:
    """Each user's bill; under None that of a user who was never drawn.

    Raises:
        UnknownEventError: As `user_epsilon`.
    """
    checked = _checked(tuple(events))
    shared: Counter[tuple[float, float]] = Counter()
    bills: dict[str | None, Bill] = defaultdict(Bill)
    for event in checked:
        if event.mechanism == "poisson_subsampled_gaussian" and is_drawing_secret:
            shared[event.sampling_probability, event.noise_multiplier] += 1
            continue
        for device in event.devices or ():
            if event.bands is None:
                bills[device].sums[1.0, event.noise_multiplier] += 1
            else:
                bills[device].bands[event.run_id, event.noise_multiplier, event.bands].append(event.server_round)
    bills[None] = Bill()
    for bill in bills.values():
        bill.sums.update(shared)
    return dict(bills)


def participations(events: Iterable[PrivacyEvent]) -> Counter[str]:
    """How often each device's contribution was, or may have been, in a noisy sum."""
    return Counter(device for event in events for device in event.devices or ())


def _checked(events: Sequence[PrivacyEvent]) -> Sequence[PrivacyEvent]:
    noise_of: dict[tuple[str, int], float] = {}
    for event in events:
        if event.population is None or event.population != events[0].population:
            raise UnknownEventError(
                f"event {event.event_id}: cannot be charged to the users of {events[0].population!r} "
                f"(it is per {event.privacy_unit}, population {event.population!r})"
            )
        if event.bands is not None and noise_of.setdefault((event.run_id, event.bands), event.noise_multiplier) != (
            event.noise_multiplier
        ):
            raise UnknownEventError(
                f"event {event.event_id}: cannot account for banded noise that changed within run {event.run_id}"
            )
    return events
