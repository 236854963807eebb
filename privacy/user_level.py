"""ε per user, from the events of one population alone.

Two fleets are neighbours when one user's whole contribution, in all rounds and runs, is added or removed where cohorts
are Poisson-sampled, and is replaced by zeros where they have a fixed size: there somebody else would be drawn instead,
so who took part counts as public.

- A Poisson-sampled sum costs every user the same, whether drawn or not (amplification by sampling).
- A sum over a fixed cohort costs only who took part, once for each participation, with no credit for chance.
- A sum whose noise the devices made in shares costs only who took part, each time, as well.
- Banded noise costs who took part by the overlap of its own rounds in a run (`privacy.banded_matrix.sensitivity`).

What a population is charged is the bill of its costliest user. It is never added to anything per example.

Models that were trained on one base may have users in common, whom nobody can recognize: a pseudonym is made for one
model. So each user of a model is charged, besides its own bill, the costliest one of every other such model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from privacy.banded_matrix import sensitivity
from privacy.errors import UnknownEventError
from privacy.renyi import SkellamSums, epsilon_of_charges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from privacy.event import PrivacyEvent
    from privacy.noise_shares import NoiseShares
    from privacy.renyi import Charge

# Of a run's banded noise: the run, the noise multiplier, the bands.
_Band = tuple[str, float, int]
# Of a sum with noise in shares: how far one user moves it, L2 and L1, and the variance that is promised.
_Sum = tuple[float, float, float]


@dataclass
class _Bill:
    """What one user pays for on its own: plain sums by noise multiplier, sums by shares, rounds of banded noise."""

    sums: Counter[float] = field(default_factory=Counter)
    in_shares: Counter[_Sum] = field(default_factory=Counter)
    bands: dict[_Band, list[int]] = field(default_factory=dict)

    def after(self, event: PrivacyEvent) -> _Bill:
        """The bill once this user took part in `event` as well."""
        if event.shares is not None:
            return replace(self, in_shares=self.in_shares + Counter([_sum_of(event.shares)]))
        if event.bands is None:
            return replace(self, sums=self.sums + Counter([event.noise_multiplier]))
        key = (event.run_id, event.noise_multiplier, event.bands)
        return replace(self, bands=self.bands | {key: [*self.bands.get(key, []), event.server_round]})


class UserBills:
    """Every user's bill, kept event by event.

    Args:
        events: What is charged already.
        is_drawing_secret: Against whom: True, who sees releases only; False, who knows who was drawn in each round
            (the operator, a reader of this ledger, whoever watches the network). Sampling amplifies nothing then.
        besides: What each user is charged on top, in the accountant's terms.

    Raises:
        UnknownEventError: An event is not per user, is of another population, or cannot be accounted for.
    """

    def __init__(
        self, events: Iterable[PrivacyEvent] = (), *, is_drawing_secret: bool = True, besides: Sequence[Charge] = ()
    ) -> None:
        self.besides = tuple(besides)
        self._is_drawing_secret = is_drawing_secret
        self._population: str | None = None
        self._noise_of_bands: dict[tuple[str, int], float] = {}
        self._shared: Counter[tuple[float, float]] = Counter()
        self._own: dict[str, _Bill] = {}
        self.participations: Counter[str] = Counter()
        for event in events:
            self.add(event)

    def add(self, event: PrivacyEvent) -> None:
        """Charge one more event."""
        self._require_known(event)
        devices = event.devices or ()
        self.participations.update(devices)
        if self._is_shared(event):
            self._shared[event.sampling_probability, event.noise_multiplier] += 1
            return
        for device in devices:
            self._own[device] = self._own.get(device, _Bill()).after(event)

    def users(self) -> tuple[str | None, ...]:
        """Everybody with a bill of their own, and None for a user who was never drawn."""
        return (*self._own, None)

    def charges_of(self, user: str | None, *, then: PrivacyEvent | None = None) -> tuple[Charge, ...]:
        """A user's bill in the accountant's terms, sorted; with `then`, once it took part in that as well."""
        own, shared = self._own.get(user or "", _Bill()), self._shared
        if then is not None and self._is_shared(then):
            shared = shared + Counter([(then.sampling_probability, then.noise_multiplier)])
        elif then is not None:
            own = own.after(then)
        steps = Counter({(1.0, noise): count for noise, count in own.sums.items()})
        for (_, noise, bands), rounds in own.bands.items():
            steps[1.0, noise / sensitivity(rounds, bands=bands)] += 1
        steps.update(shared)
        return (
            *sorted((q, noise, count) for (q, noise), count in steps.items()),
            *sorted(SkellamSums(*one, count) for one, count in own.in_shares.items()),
            *self.besides,
        )

    def epsilon(self, *, target_delta: float) -> float:
        """ε of the costliest user."""
        bills = {self.charges_of(user) for user in self.users()}
        return max(epsilon_of_charges(charges, target_delta=target_delta) for charges in bills)

    def costliest_bill(self, *, target_delta: float) -> tuple[Charge, ...]:
        """A bill that no user's exceeds, beside whatever other charges."""
        bills = {self.charges_of(user) for user in self.users()}
        if not any(bill.in_shares for bill in self._own.values()):
            # They differ in Gaussian sums alone, so the one with the largest ε is the largest beside any other, too.
            return max(sorted(bills), key=lambda charges: epsilon_of_charges(charges, target_delta=target_delta))
        # Gaussian and Skellam sums have no order among each other: of each the most that anybody pays.
        most: dict[tuple[float, ...], Charge] = {}
        for charge in (charge for bill in bills for charge in bill):
            kind = tuple(charge)[:-1]
            most[kind] = max(most.get(kind, charge), charge, key=lambda one: one[-1])
        return tuple(most.values())

    def _is_shared(self, event: PrivacyEvent) -> bool:
        return event.mechanism == "poisson_subsampled_gaussian" and self._is_drawing_secret

    def _require_known(self, event: PrivacyEvent) -> None:
        self._population = self._population or event.population
        if event.population is None or event.population != self._population:
            raise UnknownEventError(
                f"event {event.event_id}: cannot be charged to the users of {self._population!r} "
                f"(it is per {event.privacy_unit}, population {event.population!r})"
            )
        if event.bands is None:
            return
        noise = self._noise_of_bands.setdefault((event.run_id, event.bands), event.noise_multiplier)
        if noise != event.noise_multiplier:
            raise UnknownEventError(
                f"event {event.event_id}: cannot account for banded noise that changed within run {event.run_id}"
            )


def _sum_of(shares: NoiseShares) -> _Sum:
    return shares.l2, shares.l1, shares.variance


def user_epsilon(events: Iterable[PrivacyEvent], *, target_delta: float, is_drawing_secret: bool = True) -> float:
    """ε of the costliest user of one population at `target_delta`, after all `events`; see `UserBills`.

    Raises:
        UnknownEventError: An event is not per user, is of another population, or cannot be accounted for.
    """
    return UserBills(events, is_drawing_secret=is_drawing_secret).epsilon(target_delta=target_delta)


def bills_with_others(
    events: Iterable[PrivacyEvent], *, population: str, target_delta: float, is_drawing_secret: bool = True
) -> UserBills:
    """The bills of one population, with the costliest of every other population in `events` on top of each.

    Raises:
        UnknownEventError: An event is not per user, or cannot be accounted for.
    """
    found: dict[str | None, UserBills] = {}
    for event in events:
        found.setdefault(event.population, UserBills(is_drawing_secret=is_drawing_secret)).add(event)
    own = found.pop(population, UserBills(is_drawing_secret=is_drawing_secret))
    own.besides = tuple(
        group for others in found.values() for group in others.costliest_bill(target_delta=target_delta)
    )
    return own


def epsilon_by_population(events: Iterable[PrivacyEvent], *, target_delta: float) -> dict[str, float]:
    """ε of each population's costliest user, by population in sorted order; events per example are left out."""
    found: dict[str, UserBills] = {}
    for event in events:
        if event.population is not None:
            found.setdefault(event.population, UserBills()).add(event)
    return {name: bills.epsilon(target_delta=target_delta) for name, bills in sorted(found.items())}
