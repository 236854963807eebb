"""Cross-entropy that never holds the logits of a batch."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from model.training.lean.precision import product, product_back

# Logits of this many positions at a time: with 49,152 tokens 25 MB, which a processor's cache nearly holds.
_ROWS: Final = 128


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of each position: (M, dim), (vocab, dim) frozen, (M,) int64 -> (M,) float32.

    The gradient of a position's loss with respect to its hidden state is computed at once, while its logits are there,
    and later only scaled: so nothing is computed twice, and what is kept is as large as `hidden`.

    Args:
        hidden: Normalised hidden states.
        head: The output projection's weight.
        targets: The tokens that come next.
        dtype: Of the products; sums and exponentials are float32.
    """
    losses: Tensor = _TokenLosses.apply(hidden, head, targets, dtype)  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ANN401
        losses = torch.empty(len(hidden), device=hidden.device)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight = head.to(dtype)
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            scores = product(hidden[rows].to(dtype), weight).float()
            largest = scores.amax(dim=-1, keepdim=True)
            picked = scores.gather(1, targets[rows, None])
            total = scores.sub_(largest).exp_().sum(dim=-1, keepdim=True)
            losses[rows] = (total.log() + largest - picked).squeeze(1)
            if slopes is not None:
                expected = product_back(scores.to(dtype), weight).float() / total
                slopes[rows] = expected - head[targets[rows]].float()
        ctx.slopes = slopes
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (torch's context object)
        return ctx.slopes * gradients[0].unsqueeze(1), None, None, None
