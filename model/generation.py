"""Token by token: from a prompt to a stream of new token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.errors import ContextLengthError
from model.kv_cache import KVCache
from model.sampling import sample

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from model.transformer import LayeredTransformer

# A long prompt is read in pieces, so that attention's working memory does not grow with its length.
_PREFILL_TOKENS = 512


def generate(
    model: LayeredTransformer,
    token_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_ids: Collection[int] = (),
    seed: int | None = None,
) -> Iterator[int]:
    """Yield new token ids one by one, as they are made; a stop id ends the stream and is not yielded.

    The stream also ends when the model's context is full. Temperature 0 is deterministic; otherwise equal seeds give
    equal streams, and seed None draws a fresh one.

    Raises:
        ContextLengthError: The prompt leaves no room for a single new token.
        ValueError: An empty prompt, or an option out of range.
    """
    if not token_ids:
        raise ValueError("the prompt has no tokens; give at least one")
    if max_new_tokens < 0 or temperature < 0.0 or not 0.0 < top_p <= 1.0:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and temperature={temperature} must not be negative, "
            f"top_p={top_p} must be in (0, 1]"
        )
    if len(token_ids) >= model.config.max_context:
        raise ContextLengthError(
            f"the prompt has {len(token_ids)} tokens, the model's context holds {model.config.max_context}; shorten it"
        )
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    # The checks above run now, not when the first token is asked for.
    return _stream(
        model,
        list(token_ids),
        count=min(max_new_tokens, model.config.max_context - len(token_ids)),
        temperature=temperature,
        top_p=top_p,
        stop_ids=frozenset(stop_ids),
        generator=generator,
    )


def _stream(
    model: LayeredTransformer,
    prompt: list[int],
    *,
    count: int,
    temperature: float,
    top_p: float,
    stop_ids: frozenset[int],
    generator: torch.Generator,
) -> Iterator[int]:
    cache = KVCache(model.config, batch_size=1, max_length=len(prompt) + count, dtype=model.dtype, device=model.device)
    pending = prompt
    for _ in range(count):
        token = sample(
            _last_logits(model, pending, cache).cpu(), temperature=temperature, top_p=top_p, generator=generator
        )
        if token in stop_ids:
            return
        yield token
        pending = [token]


# Inference mode per step, not around the generator: suspended, it would leave the mode switched on for its caller.
@torch.inference_mode()
def _last_logits(model: LayeredTransformer, token_ids: list[int], cache: KVCache) -> torch.Tensor:
    """Logits (vocab_size,) after the last of the tokens."""
    for start in range(0, len(token_ids), _PREFILL_TOKENS):
        piece = torch.tensor([token_ids[start : start + _PREFILL_TOKENS]], dtype=torch.int64, device=model.device)
        hidden = model.hidden_states(piece, cache)
    return model.logits(hidden[0, -1])
