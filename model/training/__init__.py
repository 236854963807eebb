"""Plain training: the loss, a loop for fine-tuning without privacy, and the pretraining of a tiny demo model."""

from model.training.loop import sequence_losses, train
from model.training.pretrain import chat_texts, pretrain_tiny

__all__ = ["chat_texts", "pretrain_tiny", "sequence_losses", "train"]
