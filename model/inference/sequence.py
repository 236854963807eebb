"""One request on its way: what it runs next, and what it makes of the logits."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from model.inference.decoder import Chunk
from model.inference.lookup import PromptLookup
from model.sampling import sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.inference.adapters import PackedAdapter
    from model.inference.cache import SequenceCache

# A long prompt is read in pieces, so that those who are answering go on meanwhile.
PREFILL_TOKENS: Final = 256


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when to end.

    Attributes:
        max_new_tokens: At least 1.
        temperature: 0 is greedy.
        top_p: Nucleus of the sampling.
        seed: Equal seeds give equal tokens; None draws a fresh one.
        stop_ids: Any of these ends the answer and is not part of it.
        logprobs: Report this many likeliest tokens beside the chosen one; None reports nothing.
        is_lookup_on: Whether repeated text is guessed ahead.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    is_lookup_on: bool = True


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token of the answer; log-probabilities are natural, before temperature.

    Attributes:
        token_id: The token.
        logprob: Its log-probability; None where it was not asked for.
        top: Likeliest tokens and their log-probabilities.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class RunningSequence:
    """A member of a batch.

    Attributes:
        most_bytes: Bytes that its cache needs at most.
        is_done: Whether it needs no further step.
        is_stopped: Whether a stop token ended it.
        new_tokens: Tokens that were made and not fetched yet.
        cached_tokens: Tokens of the prompt that did not have to be read.
        guessed_tokens: Tokens that lookup guessed right.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        cache: SequenceCache,
        sampling: Sampling,
        *,
        adapter: PackedAdapter | None = None,
        most_bytes: int = 0,
    ) -> None:
        self.cache = cache
        self.adapter = adapter
        self.most_bytes = most_bytes
        self.is_done = self.is_stopped = False
        self.new_tokens: deque[NewToken] = deque()
        self.cached_tokens = cache.length
        self.guessed_tokens = 0
        self._sampling = sampling
        self._left = sampling.max_new_tokens
        self._pending = list(prompt[cache.length :])
        self._unread = len(self._pending)
        self._guess: list[int] = []
        # A window may have to forget tokens to take guesses in, and could not take them back.
        is_lookup_on = sampling.is_lookup_on and cache.window is None
        self._lookup = PromptLookup(list(prompt)) if is_lookup_on else None
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def chunk(self) -> Chunk:
        """The tokens of the next pass: a piece of the prompt, or the last token and guesses that follow it."""
        if self._unread > PREFILL_TOKENS:
            return Chunk(self._pending[:PREFILL_TOKENS], self.cache, self.adapter)
        self._guess = []
        if self._lookup is not None and self._unread == 0:
            self._guess = self._lookup.propose()[: max(0, self._left - 1)]
        return Chunk(self._pending + self._guess, self.cache, self.adapter, is_whole=bool(self._guess))

    def take(self, logits: Tensor) -> None:
        """Choose tokens from the logits of the pass: (1, vocab_size), or (T, vocab_size) with guesses."""
        if self._unread > PREFILL_TOKENS:
            del self._pending[:PREFILL_TOKENS]
            self._unread -= PREFILL_TOKENS
            return
        self._unread = 0
        chosen: list[int] = []
        for row in logits:
            token = self._choose(row)
            if token is None:
                break
            chosen.append(token)
            at = len(chosen) - 1
            if self._left == 0 or at >= len(self._guess) or self._guess[at] != token:
                break
        self._settle(chosen)

    def _choose(self, row: Tensor) -> int | None:
        """The next token; None where a stop token ends the answer."""
        wanted = self._sampling
        token = sample(row, temperature=wanted.temperature, top_p=wanted.top_p, generator=self._generator)
        if token in wanted.stop_ids:
            self.is_done = self.is_stopped = True
            return None
        self.new_tokens.append(_described(row, token, wanted.logprobs))
        self._left -= 1
        self.is_done = self._left == 0
        return token

    def _settle(self, chosen: list[int]) -> None:
        """Take back what was guessed wrong."""
        right = next((n for n, (a, b) in enumerate(zip(chosen, self._guess, strict=False)) if a != b), None)
        accepted = min(len(chosen), len(self._guess)) if right is None else right
        if self._guess:
            self.cache.truncate(self.cache.length - len(self._guess) + accepted)
            self.guessed_tokens += accepted
        if self._lookup is not None:
            if self._guess:
                self._lookup.learn(len(self._guess), accepted)
            self._lookup.extend(chosen)
        self._pending = chosen[-1:]


def _described(row: Tensor, token: int, logprobs: int | None) -> NewToken:
    if logprobs is None:
        return NewToken(token)
    values = row.float().log_softmax(-1)
    top = values.topk(logprobs) if logprobs else None
    pairs = () if top is None else tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return NewToken(token, float(values[token]), pairs)
