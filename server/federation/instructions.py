"""What devices are asked in a round, from a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy import RoundInstructions
from server.federation.secure_round import levels_for

if TYPE_CHECKING:
    from privacy.noise_shares import NoiseShares
    from server.federation.recipe import Recipe


def instructions_of(
    recipe: Recipe, *, run_id: str, server_round: int, base_hash: str, shares: NoiseShares | None
) -> RoundInstructions:
    """One round's instructions; with `shares` each device adds its own of the noise for whole users."""
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
        rank=recipe.rank,
        alpha=recipe.alpha,
        targets=recipe.target_names,
        gradients=recipe.gradients,
        secure_norm=recipe.secure_norm if is_secure else None,
        secure_levels=_levels(recipe, shares) if is_secure else None,
        secure_share_variance=None if shares is None else shares.share_variance,
    )


def _levels(recipe: Recipe, shares: NoiseShares | None) -> int:
    return levels_for(recipe.cohort) if shares is None else shares.levels
