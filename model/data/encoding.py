"""Examples into token ids with the place where the loss begins, and those into batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from model.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from model.data.source import Example
    from model.tokenizer import Tokenizer

IGNORED: Final = -100  # target of a position that does not count in the loss


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of one example; the loss counts `token_ids[loss_start:]`, the completion and the end of its turn."""

    token_ids: tuple[int, ...]
    loss_start: int

    def __post_init__(self) -> None:
        """Refuse an example without a token to predict: its mean loss would not be defined."""
        if not 0 < self.loss_start < len(self.token_ids):
            raise DataError(f"loss_start {self.loss_start} leaves nothing to predict in {len(self.token_ids)} tokens")

    @property
    def predicted(self) -> int:
        """Over how many tokens the loss is a mean."""
        return len(self.token_ids) - self.loss_start


def encode_examples(tokenizer: Tokenizer, examples: Iterable[Example], *, max_length: int) -> list[EncodedExample]:
    """Encode examples in the form that the model answers in: the chat template where there is one.

    A long prompt loses its beginning, a long completion its end; the completion may take half of `max_length` at least.

    Args:
        tokenizer: Its chat template is used.
        examples: What to encode.
        max_length: Most tokens of one example.

    Raises:
        DataError: `max_length` leaves no room beside the chat template.
    """
    overhead = len(tokenizer.encode(_render(tokenizer, "")))
    if max_length < overhead + 2:
        raise DataError(f"max_length {max_length} is too small: the chat template alone takes {overhead} tokens")
    return [_encode(tokenizer, example, max_length, overhead) for example in examples]


def collate(batch: Sequence[EncodedExample], *, pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(token_ids, targets), each (B, T) int64, padded on the right; targets are the next tokens, or `IGNORED`."""
    if not batch:
        raise DataError("an empty batch has no shape; leave the step out")
    length = max(len(example.token_ids) for example in batch) - 1
    token_ids = torch.full((len(batch), length), pad_id, dtype=torch.int64)
    targets = torch.full((len(batch), length), IGNORED, dtype=torch.int64)
    for row, example in enumerate(batch):
        ids = torch.tensor(example.token_ids, dtype=torch.int64)
        token_ids[row, : len(ids) - 1] = ids[:-1]
        targets[row, example.loss_start - 1 : len(ids) - 1] = ids[example.loss_start :]
    return token_ids, targets


def _encode(tokenizer: Tokenizer, example: Example, max_length: int, overhead: int) -> EncodedExample:
    completion = [*tokenizer.encode(example.completion), tokenizer.eos_id]
    room = max_length - min(len(completion), max(1, (max_length - overhead) // 2))
    prompt = tokenizer.encode(_render(tokenizer, example.prompt))
    if len(prompt) > room:
        kept = tokenizer.encode(example.prompt)[-(room - overhead) :] if room > overhead else []
        # Half a character at the cut may decode to other tokens than it came from, hence the last slice.
        prompt = tokenizer.encode(_render(tokenizer, tokenizer.decode(kept)))[-room:]
    token_ids = (*prompt, *completion)[:max_length]
    return EncodedExample(token_ids=token_ids, loss_start=len(prompt))


def _render(tokenizer: Tokenizer, prompt: str) -> str:
    if not tokenizer.has_chat_template:
        return f"{prompt}\n"
    return tokenizer.apply_chat([{"role": "user", "content": prompt}], add_generation_prompt=True)
