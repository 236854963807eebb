"""The user level at a run's start, or where it was left: its budget, noise, key and bound."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from privacy.banded_noise import BandedNoise
from privacy.budget import PrivacyBudget
from privacy.errors import BudgetExceededError
from privacy.keyed_random import KEY_BYTES
from privacy.promises import runs_without_noise
from privacy.user_budget import require_users_affordable, user_noise_for
from privacy.user_level import bills_with_others
from server.errors import RecipeError
from server.federation.user_level import NEXT_CLIPPING_NORM, UserLevel
from server.federation.user_plan import adaptive_clipping_of, plan_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.event import PrivacyEvent
    from privacy.randomness import RandomSource
    from privacy.user_budget import UserPlan
    from privacy.user_level import UserBills
    from server.federation.recipe import Recipe
    from server.registry import Registry


def open_user_level(
    recipe: Recipe, *, run_id: str, registry: Registry, random: RandomSource, length: int
) -> UserLevel | None:
    """The user level of a run, at its start or where it was left; None where the recipe has none.

    Args:
        recipe: The run's.
        run_id: The run.
        registry: Where earlier rounds, the budget and the key are.
        random: Where the server's noise comes from.
        length: Values of the adapter.

    Raises:
        RecipeError: The recipe does not fit the budget that the model's users have, or its own numbers.
        CalibrationError, BudgetExceededError: Too little of the budget is left for the rounds that are planned.
    """
    if not recipe.has_user_level:
        return None
    require_promise(registry, recipe.model, but=run_id)
    events = registry.user_events_for(recipe.model, base_hash=registry.run(run_id).base_hash)
    own = [event for event in events if event.run_id == run_id]
    rounds = registry.rounds(run_id)
    budget = _budget(recipe, registry)
    spent = bills_with_others(events, population=recipe.model, target_delta=budget.target_delta)
    plan = plan_of(recipe, length=length)
    level = UserLevel(
        recipe=recipe,
        run_id=run_id,
        budget=budget,
        # A run that goes on keeps its noise: the plan was made with it, and banded noise must not change.
        noise_multiplier=own[-1].noise_multiplier if own else _noise_multiplier(recipe, budget, plan, spent),
        plan=plan,
        spent=spent,
        known_events=len(events),
        banded=_banded(recipe, run_id, registry),
        clipping_norm=_clipping_norm(recipe, [r.facts for r in rounds]),
        random=random,
        last_round=_last_rounds(events, recipe.model, run_id),
    )
    _require_consistent(level)
    return level


def _last_rounds(events: Sequence[PrivacyEvent], model: str, run_id: str) -> dict[str, int]:
    """In which round each device took part last; of the run before this one counted backwards, its last being 0."""
    of_model = [event for event in events if event.population == model]
    own = [event for event in of_model if event.run_id == run_id]
    others = [event for event in of_model if event.run_id != run_id]
    before = [event for event in others if event.run_id == others[-1].run_id]
    ended = max((event.server_round for event in before), default=0)
    found = {device: event.server_round - ended for event in before for device in event.devices or ()}
    return found | {device: event.server_round for event in own for device in event.devices or ()}


def require_promise(registry: Registry, model: str, *, but: str) -> None:
    """Refuse a run per user of a model that can promise its users nothing any more; `but` is the run itself.

    Raises:
        BudgetExceededError: Runs before released what had no noise for whole users.
    """
    before = [event for event in registry.privacy_events(model=model) if event.run_id != but]
    runs = runs_without_noise(before, "user")
    if runs:
        raise BudgetExceededError(
            f"the users of {model!r} have no budget left: what {', '.join(runs)} released had no noise for whole users "
            "(privacy-mode example), and this run would build on it. Train with --set privacy-mode=example, or begin "
            "again from the base under another name: `lamella base import --model NAME`"
        )


def _noise_multiplier(recipe: Recipe, budget: PrivacyBudget, plan: UserPlan, spent: UserBills) -> float:
    """The noise of a new run, with which all its rounds stay within what is left of the budget."""
    if recipe.user_noise_multiplier == 0:
        return user_noise_for(budget, plan, spent)
    require_users_affordable(budget, plan, spent, noise_multiplier=recipe.user_noise_multiplier)
    return recipe.user_noise_multiplier


def _budget(recipe: Recipe, registry: Registry) -> PrivacyBudget:
    """The budget that the model's users have; the first run that protects them sets it."""
    asked = PrivacyBudget(target_epsilon=recipe.user_target_epsilon, target_delta=recipe.user_target_delta)
    there = registry.user_budget(recipe.model)
    if there is None:
        registry.set_user_budget(recipe.model, asked)
    elif there != asked:
        raise RecipeError(
            f"The users of {recipe.model!r} have a budget of epsilon {there.target_epsilon:g} at delta "
            f"{there.target_delta:g}; the recipe says {asked.target_epsilon:g} at {asked.target_delta:g}. Correct "
            f"user-target-epsilon and user-target-delta, or change it: `lamella privacy budget {recipe.model}`."
        )
    return asked


def _banded(recipe: Recipe, run_id: str, registry: Registry) -> BandedNoise | None:
    if recipe.noise_bands == 1:
        return None
    key = registry.noise_key(run_id, fresh=os.urandom(KEY_BYTES))
    return BandedNoise(key, bands=recipe.noise_bands)


def _clipping_norm(recipe: Recipe, facts: Sequence[Mapping[str, object]]) -> float:
    kept = facts[-1].get(NEXT_CLIPPING_NORM) if facts else None
    return float(kept) if isinstance(kept, (int, float)) else recipe.user_clipping_norm


def _require_consistent(level: UserLevel) -> None:
    rule = adaptive_clipping_of(level.recipe)
    if rule is None:
        return
    try:
        rule.noise_multiplier_of_sum(level.noise_multiplier)
    except ValueError as error:
        raise RecipeError(f"clipping-bit-noise does not fit: {error}.") from None
