"""The loss of a batch and the plain, non-private fine-tuning loop."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, cast

import torch
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.data.encoding import IGNORED, EncodedExample, collate
from model.errors import DataError
from model.training.lean import StepCost, is_lean, lean_sequence_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from model.transformer import LayeredTransformer

# Logits of this many positions at a time: with 49,152 tokens 1,024 rows are 200 MB.
_MAX_LOGIT_ROWS: Final = 1024
_MAX_GRADIENT_NORM: Final = 1.0


def sequence_losses(model: nn.Module, batch: Sequence[EncodedExample]) -> Tensor:
    """Mean cross-entropy of each example's completion, shape (B,).

    A mean per sequence, not over the batch's tokens: under per-example clipping a token mean would let the length of
    one example change the gradient of the others. Logits are computed only where the loss counts.

    Args:
        model: A `LayeredTransformer`; typed loosely, so that it fits where any module's loss is wanted.
        batch: At least one example.
    """
    decoder = cast("LayeredTransformer", model)
    token_ids, targets = (tensor.to(decoder.device) for tensor in collate(batch))
    hidden = decoder.hidden_states(token_ids)
    counted = targets != IGNORED
    rows, wanted = hidden[counted], targets[counted]
    losses = torch.cat(
        [
            F.cross_entropy(decoder.logits(piece).float(), target, reduction="none")
            for piece, target in _pieces(rows, wanted)
        ]
    )
    owner = counted.nonzero()[:, 0]
    return torch.zeros(len(batch), device=losses.device).index_add(0, owner, losses) / counted.sum(1)


def train(
    model: LayeredTransformer,
    examples: Sequence[EncodedExample],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    cost: StepCost | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Fine-tune whatever is trainable with AdamW, without privacy; the same seed gives the same weights.

    Where only an adapter without dropout is trainable, each step is the lean one.

    Args:
        model: Left in evaluation mode.
        examples: Passed through in a new random order each time round.
        steps: Optimiser steps.
        batch_size: Examples a step.
        learning_rate: Of AdamW, constant.
        seed: Of the order and of dropout.
        cost: Precision and memory of a lean step.
        on_step: Called with (step from 1, loss) after each step.

    Raises:
        DataError: There are no examples.
    """
    if not examples:
        raise DataError("there are no examples to train on")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.0, fused=True)
    model.train()
    lean = is_lean(model)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for step, batch in enumerate(islice(_batches(examples, batch_size), steps), start=1):
                losses = lean_sequence_losses(model, batch, cost=cost) if lean else sequence_losses(model, batch)
                loss = losses.mean()
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(trainable, _MAX_GRADIENT_NORM)
                optimizer.step()
                if on_step is not None:
                    on_step(step, loss.item())
    finally:
        model.eval()


def _batches(examples: Sequence[EncodedExample], batch_size: int) -> Iterator[list[EncodedExample]]:
    """Batches without end: every example once in a random order, then again in another. The last may be smaller."""
    while True:
        order = torch.randperm(len(examples)).tolist()
        for start in range(0, len(order), batch_size):
            yield [examples[i] for i in order[start : start + batch_size]]


def _pieces(rows: Tensor, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both cut into at most `_MAX_LOGIT_ROWS` rows."""
    for start in range(0, len(rows), _MAX_LOGIT_ROWS):
        yield rows[start : start + _MAX_LOGIT_ROWS], wanted[start : start + _MAX_LOGIT_ROWS]
