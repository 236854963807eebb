"""A run's adapter: the shape that its recipe asks for, and the names under which a round keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from model import LoRAConfig

if TYPE_CHECKING:
    from server.federation.recipe import Recipe

# Keys of `RoundRecord.artifacts`.
ADAPTER: Final = "adapter"
OPTIMIZER: Final = "optimizer"


def lora_of(recipe: Recipe) -> LoRAConfig:
    """The adapter's shape that a recipe asks for."""
    return LoRAConfig(rank=recipe.rank, alpha=recipe.alpha, dropout=0.0, targets=recipe.target_names)
