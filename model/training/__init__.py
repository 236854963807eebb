"""Training: the loss, the lean LoRA step, the plain loop, and the pretraining of a tiny demo model."""

from model.training.lean import StepCost, compute_dtype, has_fast_bfloat16, is_lean, lean_sequence_losses
from model.training.loop import sequence_losses, train
from model.training.pretrain import chat_texts, pretrain_tiny

__all__ = [
    "StepCost",
    "chat_texts",
    "compute_dtype",
    "has_fast_bfloat16",
    "is_lean",
    "lean_sequence_losses",
    "pretrain_tiny",
    "sequence_losses",
    "train",
]
