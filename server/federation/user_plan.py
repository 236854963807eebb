"""What a recipe's keys for the user level come down to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.adaptive_clipping import AdaptiveClipping
from privacy.noise_shares import ShareRule
from privacy.user_budget import UserPlan

if TYPE_CHECKING:
    from server.federation.recipe import Recipe


def plan_of(recipe: Recipe, *, length: int) -> UserPlan:
    """What a recipe asks of its users in all its rounds; `length` counts the values of an adapter."""
    return UserPlan(
        rounds=recipe.num_server_rounds,
        sampling_probability=recipe.sampling_probability if recipe.cohort_sampling == "poisson" else None,
        max_participations=recipe.max_participations or recipe.num_server_rounds,
        min_separation=recipe.min_separation,
        share_rule=share_rule_of(recipe, length=length) if recipe.secure_aggregation else None,
    )


def share_rule_of(recipe: Recipe, *, length: int) -> ShareRule:
    """How the devices of a recipe's cohort make the noise of a secure sum together."""
    return ShareRule(
        cohort=recipe.cohort, dropouts=recipe.secure_dropouts, colluding=recipe.secure_colluding, length=length
    )


def adaptive_clipping_of(recipe: Recipe) -> AdaptiveClipping | None:
    """The rule that the bound follows; None: it stays."""
    if recipe.clipping_quantile == 0:
        return None
    return AdaptiveClipping(
        quantile=recipe.clipping_quantile,
        step=recipe.clipping_step,
        bit_noise=recipe.clipping_bit_noise or recipe.cohort / 20,
        expected_contributions=recipe.cohort,
    )
