"""Loss on given examples, without gradients and in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.errors import DataError
from model.training.loop import sequence_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.data.encoding import EncodedExample
    from model.transformer import LayeredTransformer


@torch.inference_mode()
def example_losses(
    model: LayeredTransformer, examples: Sequence[EncodedExample], *, batch_size: int = 8
) -> list[float]:
    """Mean loss of each example, in their order; dropout is off meanwhile."""
    # Examples of like length share a batch, so that little is computed for padding.
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].token_ids))
    losses = [0.0] * len(examples)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, loss in zip(chosen, sequence_losses(model, [examples[i] for i in chosen]).tolist(), strict=True):
                losses[i] = loss
    finally:
        model.train(was_training)
    return losses


def held_out_loss(model: LayeredTransformer, examples: Sequence[EncodedExample], *, batch_size: int = 8) -> float:
    """Mean over examples of each example's mean loss.

    Raises:
        DataError: There are no examples.
    """
    if not examples:
        raise DataError("there are no held-out examples to judge the model by")
    losses = example_losses(model, examples, batch_size=batch_size)
    return sum(losses) / len(losses)
