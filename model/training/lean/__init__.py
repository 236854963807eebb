"""The lean LoRA step: what a training step costs when only a low-rank adapter is trained."""

from model.training.lean.precision import Precision, compute_dtype, has_fast_bfloat16
from model.training.lean.step import StepCost, is_lean, lean_sequence_losses

__all__ = ["Precision", "StepCost", "compute_dtype", "has_fast_bfloat16", "is_lean", "lean_sequence_losses"]
