"""Cross-entropy that never holds a row of logits, let alone those of a batch."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from model.training.lean.precision import product, product_back

# Logits at a time: 4 MB of them and the 5 MB of weights that make them stay in a processor's cache.
_ROWS: Final = 512
_TOKENS: Final = 2048


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of each position: (M, dim), (vocab, dim) frozen, (M,) int64 -> (M,) float32.

    The vocabulary is taken piece by piece with a running maximum, as attention over long sequences is (Milakov and
    Gimelshein 2018, arXiv:1805.02867). A loss's gradient with respect to its hidden state, sum of p E minus the
    target's row of E, is gathered on the way and later only scaled: nothing is computed twice, and what is kept is as
    large as `hidden`.

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
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            wanted = head[targets[rows]].to(dtype).float()
            chosen = hidden[rows].to(dtype)
            log_total, expected = _over_vocabulary(chosen, head, has_gradient=slopes is not None)
            losses[rows] = log_total - torch.linalg.vecdot(chosen.float(), wanted)
            if slopes is not None and expected is not None:
                torch.sub(expected, wanted, out=slopes[rows])
        ctx.slopes = slopes
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (torch's context object)
        return ctx.slopes * gradients[0].unsqueeze(1), None, None, None


def _over_vocabulary(hidden: Tensor, head: Tensor, *, has_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The logarithm of the sum of exponentials (M,), and the mean row of `head` under the softmax (M, dim), float32."""
    largest = torch.full((len(hidden), 1), -torch.inf, device=hidden.device)
    total = torch.zeros_like(largest)
    expected = torch.zeros(hidden.shape, device=hidden.device) if has_gradient else None
    for start in range(0, len(head), _TOKENS):
        piece = head[start : start + _TOKENS].to(hidden.dtype)
        scores = product(hidden, piece).float()
        larger = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        shrink = (largest - larger).exp_()
        shares = scores.sub_(larger).exp_()
        total = total.mul_(shrink).add_(shares.sum(dim=-1, keepdim=True))
        if expected is not None:
            expected.mul_(shrink).add_(product_back(shares.to(hidden.dtype), piece))
        largest = larger
    log_total = (total.log() + largest).squeeze(1)
    return log_total, None if expected is None else expected.div_(total)
