"""A fixed prompt and a version's answer to it in numbers: what is signed with a version, and what a device compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from model.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from model.checkpoint import LoadedModel
    from model.tokenizer import Tokenizer
    from model.transformer import LayeredTransformer

PROMPT: Final = "The quick brown fox"
LOGITS_FACT: Final = "self_test_logits"
"""Name of the fact that holds `describe_logits` of a version."""

_COUNT = 16
_MAX_CHARS = 4096


def probe_logits(loaded: LoadedModel) -> Tensor:
    """Logits (vocab_size,) float32 after the fixed prompt, with the version's adapter."""
    return logits_of(loaded.model, loaded.tokenizer)


def logits_of(model: LayeredTransformer, tokenizer: Tokenizer) -> Tensor:
    """As `probe_logits`, of a model and a tokenizer."""
    prompt = torch.tensor([tokenizer.encode(PROMPT)], dtype=torch.int64)
    with torch.inference_mode():
        logits: Tensor = model(prompt)[0, -1].float()
    return logits


def describe_logits(logits: Tensor) -> str:
    """The likeliest tokens and as many others, spread over the vocabulary, as `id:logit` separated by spaces.

    The likeliest alone would not notice a change that leaves them in place.
    """
    likeliest = torch.topk(logits, min(_COUNT, len(logits))).indices.tolist()
    spread = torch.linspace(0, len(logits) - 1, _COUNT).long().tolist()
    return " ".join(f"{token}:{float(logits[token]):.5f}" for token in sorted({*likeliest, *spread}))


def expected_logits(text: str) -> dict[int, float]:
    """Parse what `describe_logits` wrote.

    Raises:
        CheckpointError: it is something else.
    """
    refusal = CheckpointError("the expected logits of this version are not `id:logit` pairs; sign it anew")
    try:
        pairs = [part.split(":") for part in text[: _MAX_CHARS + 1].split()]
        found = {int(token): float(value) for token, value in pairs}
    except ValueError:
        raise refusal from None
    is_finite = bool(torch.tensor(list(found.values())).isfinite().all())
    if not found or len(text) > _MAX_CHARS or min(found) < 0 or not is_finite:
        raise refusal
    return found
