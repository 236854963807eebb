"""What devices are asked in a round, from a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy import RoundInstructions
from server.federation.secure_round import levels_for

if TYPE_CHECKING:
    from privacy.user_promise import UserPromise
    from server.federation.recipe import Recipe


def instructions_of(
    recipe: Recipe, *, run_id: str, server_round: int, base_hash: str, promise: UserPromise | None
) -> RoundInstructions:
    """One round's instructions; with a `promise` to users each device adds its share of the noise."""
    is_secure = recipe.secure_aggregation
    return RoundInstructions(
        run_id=run_id,
        server_round=server_round,
        base_hash=base_hash,
        privacy_unit="example" if recipe.has_example_level else "user",
        clipping_norm=recipe.clipping_norm,
        target_epsilon=recipe.target_epsilon,
        target_delta=recipe.target_delta,
        budget_rounds=recipe.participations,
        steps=recipe.local_steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        max_length=recipe.max_length,
        max_examples=recipe.max_examples,
        example_counts=recipe.example_counts,
        rank=recipe.rank,
        alpha=recipe.alpha,
        targets=recipe.target_names,
        gradients=recipe.gradients,
        secure_norm=recipe.secure_norm if is_secure else None,
        secure_levels=_levels(recipe, promise) if is_secure else None,
        user_promise=promise,
    )


def _levels(recipe: Recipe, promise: UserPromise | None) -> int:
    return levels_for(recipe.cohort) if promise is None else promise.shares.levels
