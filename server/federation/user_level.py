"""The user level of a run: who may take part, the noisy sum, and what the model's users are charged for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from privacy import BudgetExceededError, PrivacyEvent
from privacy.mechanism import noisy_average, norm_of, size_of
from privacy.user_budget import can_afford, require_users_affordable
from privacy.user_promise import UserPromise
from server.federation.user_plan import adaptive_clipping_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from privacy.banded_noise import BandedNoise
    from privacy.budget import PrivacyBudget
    from privacy.event import Mechanism
    from privacy.noise_shares import NoiseShares
    from privacy.randomness import RandomSource
    from privacy.user_budget import UserPlan
    from privacy.user_level import UserBills
    from server.federation.recipe import Recipe
    from server.federation.replies import Accepted, AdapterState

# Keys of a round's facts.
CLIPPING_NORM: Final = "user_clipping_norm"
NEXT_CLIPPING_NORM: Final = "next_user_clipping_norm"


@dataclass
class UserLevel:
    """Keeps one run's promise to whole users; a user is a device, by the pseudonym that it trains under.

    Made by `server.federation.user_start`. The budget is asked before each round, and each device's cap and separation
    when it has answered, because only then it says who it is.
    """

    recipe: Recipe
    run_id: str
    budget: PrivacyBudget
    noise_multiplier: float
    plan: UserPlan
    spent: UserBills
    known_events: int
    banded: BandedNoise | None
    clipping_norm: float
    random: RandomSource
    last_round: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._device_of_node: dict[int, str] = {}
        self._next_norm = self.clipping_norm
        rule = self.plan.share_rule
        # Made once: what devices are told and what the ledger says of it must be the same.
        self.shares: NoiseShares | None = None if rule is None else rule.shares(self.noise_multiplier)

    @property
    def promise(self) -> UserPromise | None:
        """What devices are told, where they make the noise."""
        if self.shares is None:
            return None
        budget = self.budget
        return UserPromise(
            population=self.recipe.model,
            target_epsilon=budget.target_epsilon,
            target_delta=budget.target_delta,
            shares=self.shares,
        )

    def require_affordable(self, server_round: int) -> None:
        """Refuse a round before anybody trains, if its noisy sum could overspend whoever takes part.

        Each device of a fixed cohort pays for itself, and is left out when it cannot (`refusal`).

        Raises:
            BudgetExceededError: It could.
        """
        if self.recipe.is_poisson:
            plan = replace(self.plan, rounds=1)
            require_users_affordable(self.budget, plan, self.spent, noise_multiplier=self.noise_multiplier)
        elif not can_afford(self.budget, self.spent, None, self._event((), server_round)):
            raise BudgetExceededError(
                f"round {server_round} with user noise {self.noise_multiplier:g} would cost even a device that never "
                f"took part more than the users' budget of epsilon {self.budget.target_epsilon:g}"
            )

    def eligible(self, nodes: Iterable[int], server_round: int) -> tuple[int, ...]:
        """The nodes without those whose device is known to sit this round out."""
        return tuple(
            node
            for node in nodes
            if node not in self._device_of_node or self.refusal(self._device_of_node[node], server_round) is None
        )

    def refusal(self, device: str, server_round: int) -> str | None:
        """Why a device's contribution may not be used in this round, in words; None: it may."""
        cap, done = self.plan.max_participations, self.spent.participations[device]
        if done >= cap:
            return f"this device has taken part {done} times, of {cap} at most (max-participations)"
        last = self.last_round.get(device, -math.inf)
        if server_round - last < self.recipe.min_separation:
            return f"this device took part in round {last}, and {self.recipe.min_separation} rounds must lie between"
        if not can_afford(self.budget, self.spent, device, self._event((), server_round)):
            return f"one more round would bring this device above the users' budget of {self.budget.target_epsilon:g}"
        return None

    def average(self, updates: Sequence[AdapterState], adapter: AdapterState, server_round: int) -> AdapterState:
        """The noisy sum of the clipped updates over the expected cohort, float32."""
        shapes = {name: tensor.shape for name, tensor in adapter.items()}
        norms = [norm_of(update) for update in updates]
        rule = adaptive_clipping_of(self.recipe)
        found = noisy_average(
            updates,
            shapes=shapes,
            clipping_norm=self.clipping_norm,
            noise_multiplier=self.noise_multiplier
            if rule is None
            else rule.noise_multiplier_of_sum(self.noise_multiplier),
            expected_contributions=self.recipe.cohort,
            unit_noise=self._unit_noise(server_round, size_of(shapes)),
        )
        if rule is not None:
            unit = float(self.random.normals(1)[0])
            self._next_norm = rule.next_norm(self.clipping_norm, norms, unit_noise=unit)
        return {name: tensor.astype(np.float32) for name, tensor in found.items()}

    def event(
        self, accepted: Sequence[Accepted], server_round: int, *, also: Sequence[PrivacyEvent]
    ) -> PrivacyEvent | None:
        """What the round costs; None when nothing of anybody was seen: a sum without its noise is never unmasked.

        A Poisson-sampled sum costs everybody the same, whoever was drawn: nobody, too. Where devices were charged per
        example (`also`) and nobody is per user, an event of nobody says that the run had noise for users all the same.
        """
        fewest = 1 if self.shares is None else self.shares.fewest
        if len(accepted) < fewest and not self.recipe.is_poisson:
            return self._event((), server_round) if also else None
        return self._event([item.contribution.device_id for item in accepted], server_round)

    def _event(self, devices: Sequence[str], server_round: int) -> PrivacyEvent:
        recipe = self.recipe
        return PrivacyEvent(
            run_id=self.run_id,
            server_round=server_round,
            privacy_unit="user",
            population=recipe.model,
            devices=tuple(devices),
            cohort_rule=recipe.cohort_sampling,
            mechanism=self._mechanism,
            noise_multiplier=self.noise_multiplier,
            sampling_probability=recipe.sampling_probability if recipe.is_poisson else 1.0,
            steps=1,
            bands=recipe.noise_bands if self.banded is not None else None,
            shares=self.shares,
            clipping_norm=self.clipping_norm,
            target_delta=recipe.user_target_delta,
            recorded_at=datetime.now(UTC),
        )

    @property
    def _mechanism(self) -> Mechanism:
        if self.shares is not None:
            return "skellam_shares"
        if self.banded is not None:
            return "banded_toeplitz_gaussian"
        return "poisson_subsampled_gaussian" if self.recipe.is_poisson else "gaussian_capped"

    def facts(self) -> dict[str, float]:
        """What the run needs to go on from here, and the operator may like to see."""
        return {CLIPPING_NORM: self.clipping_norm, NEXT_CLIPPING_NORM: self._next_norm}

    def recorded(self, event: PrivacyEvent | None, accepted: Sequence[Accepted], server_round: int) -> None:
        """Go on to the next round, after this one has been written down."""
        self.clipping_norm = self._next_norm
        if event is None:
            return
        self.spent.add(event)
        self.known_events += 1
        for item in accepted:
            self._device_of_node[item.node_id] = item.contribution.device_id
            self.last_round[item.contribution.device_id] = server_round

    def _unit_noise(self, server_round: int, count: int) -> npt.NDArray[np.float64]:
        if self.banded is not None:
            return self.banded.at(server_round, count=count)
        return self.random.normals(count)
