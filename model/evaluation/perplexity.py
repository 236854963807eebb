"""Perplexity of running text, by windows.

Protocol: the text is encoded as one sequence, without a token before it. Windows of `context` tokens begin every
`stride` tokens; each token but the very first is scored exactly once, in the first window that reaches it, so every
token after the first window sees at least `context - stride` tokens before it. The perplexity is exp of the mean loss
a token (Jelinek et al. 1977); it depends on the tokenizer, so only models with the same one compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from model.transformer import LayeredTransformer

# Positions whose logits exist at once: with a vocabulary of 50,000, each takes 200 kB.
_LOGIT_POSITIONS: Final = 512
# Neighbouring tokens' losses hang together; blocks of this many are taken as independent draws.
_BLOCK_TOKENS: Final = 256
_Z95: Final = 1.959964


@dataclass(frozen=True)
class PerplexityResult:
    """The perplexity of a text, with the losses it comes from.

    Attributes:
        losses: Loss of each scored token, in nats, in the order of the text: float32 (tokens,).
    """

    losses: Tensor

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean loss a token, in nats."""
        return float(self.losses.double().mean())

    @property
    def perplexity(self) -> float:
        """Exp of the mean loss."""
        return math.exp(self.loss)

    def relative_loss(self, reference: PerplexityResult) -> tuple[float, float]:
        """How much larger this perplexity is than another of the same tokens: the ratio less one, and its margin.

        The margin is half of a 95 % interval from the paired differences of blocks of 256 tokens: pairing removes
        what makes one text harder than another.

        Raises:
            DataError: They are of other texts.
        """
        if self.tokens != reference.tokens:
            raise DataError(f"perplexities of {self.tokens} and {reference.tokens} tokens do not compare")
        difference = (self.losses - reference.losses).double()
        ratio = math.exp(float(difference.mean()))
        blocks = [
            float(block.mean()) for block in torch.split(difference, _BLOCK_TOKENS) if len(block) == _BLOCK_TOKENS
        ]
        if len(blocks) < 2:  # noqa: PLR2004  (a spread needs two)
            return ratio - 1, math.inf
        return ratio - 1, ratio * _Z95 * float(torch.tensor(blocks).std()) / math.sqrt(len(blocks))


@torch.inference_mode()
def perplexity(
    model: LayeredTransformer,
    token_ids: Sequence[int],
    *,
    context: int = 1024,
    stride: int = 512,
    batch_size: int = 4,
    max_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Score a text; the protocol is that of this module.

    Args:
        model: In evaluation mode.
        token_ids: The whole text, encoded.
        context: Tokens a window.
        stride: Tokens from one window's beginning to the next one's; `context` is quickest, less is more exact.
        batch_size: Windows computed at once.
        max_tokens: Take only this many tokens from the beginning.
        on_progress: Called with the windows done and their number.

    Raises:
        DataError: Fewer than two tokens.
        ContextLengthError: The model's context is shorter than `context`.
    """
    ids = torch.tensor(token_ids[:max_tokens] if max_tokens else token_ids, dtype=torch.int64, device=model.device)
    if len(ids) < 2:  # noqa: PLR2004  (one to score, one before it)
        raise DataError("the text has fewer than two tokens; take a longer one")
    windows = _windows(len(ids), context, min(stride, context))
    parts = []
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        parts.extend(_losses(model, ids, batch))
        if on_progress is not None:
            on_progress(min(start + batch_size, len(windows)), len(windows))
    return PerplexityResult(torch.cat(parts).float().cpu())


def _windows(count: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """Begin, first scored position and end of each window; the last token of a window is only scored, not read."""
    windows = []
    scored = 1
    for begin in range(0, count, stride):
        end = min(begin + context + 1, count)
        if end > scored:
            windows.append((begin, scored, end))
        scored = end
        if end == count:
            break
    return windows


def _losses(model: LayeredTransformer, ids: Tensor, windows: list[tuple[int, int, int]]) -> list[Tensor]:
    """Losses of each window's scored tokens; a short window is padded on the right, where nothing looks."""
    width = max(end - begin - 1 for begin, _, end in windows)
    batch = torch.zeros(len(windows), width, dtype=torch.int64, device=ids.device)
    for row, (begin, _, end) in enumerate(windows):
        batch[row, : end - begin - 1] = ids[begin : end - 1]
    hidden = model.hidden_states(batch)
    return [
        token_losses(model, hidden[row, scored - begin - 1 : end - begin - 1], ids[scored:end])
        for row, (begin, scored, end) in enumerate(windows)
    ]


def token_losses(model: LayeredTransformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Loss of each target, in nats, float32: hidden states (T, model_dim), targets (T,) -> (T,)."""
    parts = [
        F.cross_entropy(model.logits(states).float(), wanted, reduction="none")
        for states, wanted in zip(
            torch.split(hidden, _LOGIT_POSITIONS), torch.split(targets, _LOGIT_POSITIONS), strict=True
        )
    ]
    return torch.cat(parts)
