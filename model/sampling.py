"""Choosing the next token from logits."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(logits: Tensor, *, temperature: float, top_p: float, generator: torch.Generator | None) -> int:
    """One token id from logits of shape (vocab_size,).

    Temperature 0 takes the most likely token, the lowest id among equals. Otherwise nucleus sampling: draw among
    the smallest set of tokens whose probabilities reach `top_p` (Holtzman et al. 2020, arXiv:1904.09751).
    """
    if temperature == 0.0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1.0:
        descending, order = probabilities.sort(descending=True)
        # A token stays while the mass before it is below top_p, so the most likely one always stays.
        descending[descending.cumsum(-1) - descending >= top_p] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter_(0, order, descending)
    return int(torch.multinomial(probabilities, 1, generator=generator))
