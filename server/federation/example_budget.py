"""What each example of a model's devices may be charged in all: no run may ask for more than was promised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.budget import PrivacyBudget
from server.errors import RecipeError

if TYPE_CHECKING:
    from server.federation.recipe import Recipe
    from server.registry import Registry


def require_example_budget(recipe: Recipe, registry: Registry) -> None:
    """Hold a recipe to the budget of its model; the first run that protects examples sets it.

    Raises:
        RecipeError: It asks for more.
    """
    if not recipe.has_example_level:
        return
    there = registry.example_budget(recipe.model)
    if there is None:
        asked = PrivacyBudget(target_epsilon=recipe.target_epsilon, target_delta=recipe.target_delta)
        registry.set_example_budget(recipe.model, asked)
    elif recipe.target_epsilon > there.target_epsilon or recipe.target_delta > there.target_delta:
        raise RecipeError(
            f"Each example of the devices of {recipe.model!r} has a budget of epsilon {there.target_epsilon:g} at "
            f"delta {there.target_delta:g}; the recipe asks for {recipe.target_epsilon:g} at {recipe.target_delta:g}. "
            "A run may ask for less, not for more. Correct target-epsilon and target-delta, or raise what was "
            f"promised: `lamella privacy budget {recipe.model} --per example --epsilon {recipe.target_epsilon:g}`."
        )
