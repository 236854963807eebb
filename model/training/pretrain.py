"""A tiny model from nothing in seconds: its tokenizer, its weights, its chat template.

It knows a little of the texts it saw and serves where the real weights are too slow: quick demos and tests.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.checkpoint import save_checkpoint
from model.errors import DataError
from model.presets import preset
from model.tokenizer import Tokenizer
from model.transformer import LayeredTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from model.config import ModelConfig
    from model.data.source import Example

_END_OF_TEXT: Final = "<|endoftext|>"
_TURN_START: Final = "<|im_start|>"
_TURN_END: Final = "<|im_end|>"
# ChatML without a system prompt of its own: a tiny model has no tokens to spare.
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' + message['content'] }}<|im_end|>{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
_BLOCK_TOKENS: Final = 96
_BATCH_BLOCKS: Final = 8
_PEAK_LEARNING_RATE: Final = 6e-3


def chat_texts(examples: Iterable[Example]) -> list[str]:
    """Examples as texts for `pretrain_tiny`, in the form of its chat template."""
    return [
        f"{_TURN_START}user\n{example.prompt}{_TURN_END}\n{_TURN_START}assistant\n{example.completion}{_TURN_END}\n"
        for example in examples
    ]


def pretrain_tiny(
    out_folder: Path,
    *,
    steps: int,
    seed: int,
    texts: Sequence[str],
    on_step: Callable[[int, float], None] | None = None,
) -> ModelConfig:
    """Train a `tiny-pyramid` model and write it as `out_folder/base/`; the same seed and texts give the same model.

    Args:
        out_folder: The version's tree.
        steps: Optimiser steps of 8 blocks of 96 tokens.
        seed: Of the first weights and of the order of the blocks.
        texts: Documents; `chat_texts` makes them from examples.
        on_step: Called with (step from 1, loss) after each step.

    Raises:
        DataError: The texts are too few for a single batch.
        CheckpointError: The disk does not take it.
    """
    config = preset("tiny-pyramid")
    tokenizer = _train_tokenizer(texts, config.vocab_size)
    blocks = _pack(tokenizer, texts)
    generator = torch.Generator().manual_seed(seed)
    model = LayeredTransformer(config)
    _initialise(model, generator)
    with _one_thread():
        _fit(model, blocks, steps=steps, generator=generator, on_step=on_step)
    save_checkpoint(out_folder / "base", model.eval(), tokenizer)
    return config


def _fit(
    model: LayeredTransformer,
    blocks: torch.Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] | None,
) -> None:
    """AdamW on random rows of `blocks`, every next token counted."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = _PEAK_LEARNING_RATE * _schedule(step, steps)
        batch = blocks[torch.randint(len(blocks), (_BATCH_BLOCKS,), generator=generator)]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if on_step is not None:
            on_step(step, loss.item())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the matrices are too small to share, and sums then do not depend on the machine's cores.

    On a busy machine two threads took five times the processor time of one here.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT, _TURN_START, _TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    settings: dict[str, Any] = {
        "bos_token": _TURN_START,
        "eos_token": _TURN_END,
        "pad_token": _END_OF_TEXT,
        "stop_tokens": [_END_OF_TEXT],
        "chat_template": _CHAT_TEMPLATE,
    }
    return Tokenizer(tokenizer.to_str(), settings)


def _pack(tokenizer: Tokenizer, texts: Iterable[str]) -> torch.Tensor:
    """All texts one after the other, cut into rows of `_BLOCK_TOKENS` + 1 ids."""
    ids = [token for text in texts for token in (*tokenizer.encode(text), tokenizer.pad_id)]
    rows = len(ids) // (_BLOCK_TOKENS + 1)
    if rows < _BATCH_BLOCKS:
        raise DataError(
            f"the texts have {len(ids)} tokens, pretraining needs {_BATCH_BLOCKS * (_BLOCK_TOKENS + 1)} at least"
        )
    return torch.tensor(ids[: rows * (_BLOCK_TOKENS + 1)], dtype=torch.int64).view(rows, _BLOCK_TOKENS + 1)


@torch.no_grad()
def _initialise(model: LayeredTransformer, generator: torch.Generator) -> None:
    """Normal weights; what writes to the residual stream starts smaller, the deeper the model (as in GPT-2)."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:  # noqa: PLR2004  (norms keep their ones)
            continue
        stddev = 0.02 if name == "embedding.weight" else parameter.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            stddev /= math.sqrt(2 * model.config.num_layers)
        parameter.normal_(0.0, stddev, generator=generator)


def _schedule(step: int, steps: int) -> float:
    """Warm-up over the first tenth, then a cosine down to a tenth of the peak."""
    warm_up = max(1, steps // 10)
    if step <= warm_up:
        return step / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))
