"""What the users of a population may still be charged: how much noise a plan needs, and what does not fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.calibration import least_tick, noise_of
from privacy.errors import BudgetExceededError, CalibrationError
from privacy.renyi import SkellamSums, epsilon_of_charges
from privacy.user_level import UserBills

if TYPE_CHECKING:
    from privacy.budget import PrivacyBudget
    from privacy.event import PrivacyEvent
    from privacy.noise_shares import ShareRule
    from privacy.renyi import Charge


@dataclass(frozen=True, kw_only=True)
class UserPlan:
    """What a run is going to ask of a population.

    Attributes:
        rounds: Rounds still to come.
        sampling_probability: Of Poisson sampling; None for a cohort of fixed size, where no chance is counted on.
        max_participations: Contributions of one device at most, over all runs.
        min_separation: Rounds from one contribution of a device to its next, at least.
        share_rule: How devices make the noise in shares; None: the server adds it.
    """

    rounds: int
    sampling_probability: float | None
    max_participations: int
    min_separation: int
    share_rule: ShareRule | None = None

    def participations_after(self, done: int) -> int:
        """How often a device that took part `done` times can still take part."""
        return max(0, min(self.max_participations - done, -(-self.rounds // self.min_separation)))

    def charge(self, *, noise_multiplier: float, done: int) -> Charge | None:
        """What is still to come for a user that took part `done` times, with that noise; None: nothing.

        Raises:
            CalibrationError: So much noise cannot be made in shares.
        """
        times = self.participations_after(done) if self.sampling_probability is None else self.rounds
        if times == 0:
            return None
        if self.share_rule is None:
            return self.sampling_probability or 1.0, noise_multiplier, times
        shares = self.share_rule.shares(noise_multiplier)
        return SkellamSums(shares.l2, shares.l1, shares.variance, times)


def epsilon_after(plan: UserPlan, spent: UserBills, *, noise_multiplier: float, target_delta: float) -> float:
    """ε of the costliest user once `plan` has run its course with that noise, whoever is drawn."""
    outlooks = set()
    for user in spent.users():
        done = 0 if user is None else spent.participations[user]
        more = plan.charge(noise_multiplier=noise_multiplier, done=done)
        outlooks.add((*spent.charges_of(user), *([] if more is None else [more])))
    return max(epsilon_of_charges(charges, target_delta=target_delta) for charges in outlooks)


def epsilon_by_round(plan: UserPlan, *, noise_multiplier: float, target_delta: float) -> tuple[float, ...]:
    """ε of the costliest user of a fresh population after each round of `plan`, whoever is drawn."""
    return tuple(
        epsilon_after(
            replace(plan, rounds=rounds), UserBills(), noise_multiplier=noise_multiplier, target_delta=target_delta
        )
        for rounds in range(1, plan.rounds + 1)
    )


def user_noise_for(budget: PrivacyBudget, plan: UserPlan, spent: UserBills) -> float:
    """The smallest noise multiplier, in thousandths, with which `plan` stays within what is left of `budget`.

    Raises:
        CalibrationError: No supported amount of noise is enough, as little or nothing is left.
    """

    def cost(tick: int) -> float:
        return epsilon_after(plan, spent, noise_multiplier=noise_of(tick), target_delta=budget.target_delta)

    before = spent.epsilon(target_delta=budget.target_delta)
    if before >= budget.target_epsilon:
        raise CalibrationError(_too_little(budget, plan, spent, before))
    try:
        return noise_of(least_tick(cost, target=budget.target_epsilon))
    except CalibrationError:
        raise CalibrationError(_too_little(budget, plan, spent, before)) from None


def require_users_affordable(
    budget: PrivacyBudget, plan: UserPlan, spent: UserBills, *, noise_multiplier: float
) -> float:
    """ε of the costliest user after `plan`, when the budget allows it. Ask before anybody is asked to train.

    Raises:
        BudgetExceededError: It does not; the message says what would.
    """
    after = epsilon_after(plan, spent, noise_multiplier=noise_multiplier, target_delta=budget.target_delta)
    if after > budget.target_epsilon:
        before = spent.epsilon(target_delta=budget.target_delta)
        raise BudgetExceededError(
            f"{plan.rounds} more rounds with user noise {noise_multiplier:g} could bring epsilon of the model's users "
            f"from {before:.3f} to {after:.3f}, above their budget of {budget.target_epsilon:g} at delta "
            f"{budget.target_delta:g}; {_advice(budget, plan, spent)}"
        )
    return after


def can_afford(budget: PrivacyBudget, spent: UserBills, user: str | None, event: PrivacyEvent) -> bool:
    """Whether one user (None: one who was never drawn) can take part in `event` within `budget`."""
    charges = spent.charges_of(user, then=event)
    return epsilon_of_charges(charges, target_delta=budget.target_delta) <= budget.target_epsilon


def _too_little(budget: PrivacyBudget, plan: UserPlan, spent: UserBills, before: float) -> str:
    others = " (with what other models on its base cost)" if spent.besides else ""
    return (
        f"the users of this model have spent epsilon {before:.3f} of {budget.target_epsilon:g}{others}: too little is "
        f"left for {plan.rounds} more rounds, with any amount of noise"
    )


def _advice(budget: PrivacyBudget, plan: UserPlan, spent: UserBills) -> str:
    try:
        return f"user-noise-multiplier {user_noise_for(budget, plan, spent):g} would fit"
    except CalibrationError:
        return "no amount of noise would fit: plan fewer rounds, or raise the budget"
