"""How good a model is, measured the same way for every version."""

from model.evaluation.losses import example_losses, held_out_loss

__all__ = ["example_losses", "held_out_loss"]
