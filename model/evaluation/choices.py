"""Accuracy on multiple-choice questions, by the probability of each answer.

Protocol: the prompt is the question, trimmed, followed by a line break and "Answer:"; each answer is a blank and the
answer's text, encoded on its own. An answer's score is the sum of its tokens' log probabilities (`accuracy`), or that
sum over the answer's length in UTF-8 bytes (`accuracy_normalised`, which does not favour short answers and does not
depend on the tokenizer). The highest score is the model's answer. Zero-shot. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from model.errors import DataError
from model.evaluation.perplexity import token_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from model.tokenizer import Tokenizer
    from model.transformer import LayeredTransformer

_MAX_FILE_BYTES: Final = 64 * 1024 * 1024
_Z95: Final = 1.959964


@dataclass(frozen=True)
class Question:
    """A question, its possible answers, and which one is right."""

    query: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class ChoiceResult:
    """How many questions were answered rightly.

    Attributes:
        answered: Whether each question was answered rightly by the log probability a byte; for comparing two models
            question by question, which tells more than two intervals.
        right: Number answered rightly by the sum of log probabilities.
        chosen: The answer to each question by the log probability a byte, by its index; how often two models choose
            the same says more about what quantising changed than how often each is right.
    """

    answered: tuple[bool, ...]
    right: int
    chosen: tuple[int, ...]

    @property
    def questions(self) -> int:
        """Number asked."""
        return len(self.answered)

    @property
    def right_normalised(self) -> int:
        """Number answered rightly by the log probability a byte."""
        return sum(self.answered)

    @property
    def accuracy(self) -> float:
        """Share of right answers by the sum of log probabilities."""
        return self.right / self.questions

    @property
    def accuracy_normalised(self) -> float:
        """Share of right answers by the log probability a byte."""
        return self.right_normalised / self.questions

    @property
    def interval_normalised(self) -> tuple[float, float]:
        """95 % interval of `accuracy_normalised`."""
        return wilson_interval(self.right_normalised, self.questions)


@dataclass(frozen=True)
class _Scored:
    """One answer to compute: which question and choice, its tokens, and how many of them are the prompt's."""

    question: int
    choice: int
    token_ids: tuple[int, ...]
    prompt_tokens: int


def read_questions(path: Path, *, limit: int | None = None) -> list[Question]:
    """Read lines of `{"query": ..., "choices": [...], "gold": INDEX}`.

    Args:
        path: The file.
        limit: Take only this many, from the beginning.

    Raises:
        DataError: The file is missing, too large, or a line is not of this form; the line is named.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise DataError(f"{path} is larger than {_MAX_FILE_BYTES} bytes; give a smaller part of it")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    wanted = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()][:limit]
    if not wanted:
        raise DataError(f"{path} has no questions")
    return [_question(line, f"{path}, line {number}") for number, line in wanted]


@torch.inference_mode()
def choice_accuracy(
    model: LayeredTransformer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    batch_tokens: int = 4096,
    on_progress: Callable[[int, int], None] | None = None,
) -> ChoiceResult:
    """Ask a model; the protocol is that of this module.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        questions: What to ask.
        batch_tokens: Tokens computed at once, padding included.
        on_progress: Called with the answers scored and their number.

    Raises:
        ContextLengthError: A question is longer than the model's context.
    """
    answers = [answer for index, question in enumerate(questions) for answer in _answers(tokenizer, index, question)]
    # Answers of like length share a batch, so that little is computed for padding.
    answers.sort(key=lambda answer: -len(answer.token_ids))
    scores: dict[tuple[int, int], float] = {}
    start = 0
    while start < len(answers):
        batch = answers[start : start + max(1, batch_tokens // len(answers[start].token_ids))]
        scores |= _score(model, batch)
        start += len(batch)
        if on_progress is not None:
            on_progress(start, len(answers))
    right, chosen = 0, []
    for index, question in enumerate(questions):
        total = [scores[index, choice] for choice in range(len(question.choices))]
        by_byte = [score / max(1, len(text.encode())) for score, text in zip(total, question.choices, strict=True)]
        right += total.index(max(total)) == question.gold
        chosen.append(by_byte.index(max(by_byte)))
    answered = tuple(choice == question.gold for choice, question in zip(chosen, questions, strict=True))
    return ChoiceResult(answered, right, tuple(chosen))


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), sound also near 0 and 1."""
    share, spread = right / count, _Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def _answers(tokenizer: Tokenizer, index: int, question: Question) -> list[_Scored]:
    prompt = tokenizer.encode(question.query.strip() + "\nAnswer:")
    return [
        _Scored(index, choice, (*prompt, *tokenizer.encode(" " + text.strip())), len(prompt))
        for choice, text in enumerate(question.choices)
    ]


def _score(model: LayeredTransformer, batch: list[_Scored]) -> dict[tuple[int, int], float]:
    """Sum of log probabilities of each answer."""
    width = max(len(answer.token_ids) for answer in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    for row, answer in enumerate(batch):
        ids[row, : len(answer.token_ids)] = torch.tensor(answer.token_ids)
    ids = ids.to(model.device)
    hidden = model.hidden_states(ids)
    spans = [(row, answer.prompt_tokens, len(answer.token_ids)) for row, answer in enumerate(batch)]
    states = torch.cat([hidden[row, begin - 1 : end - 1] for row, begin, end in spans])
    losses = token_losses(model, states, torch.cat([ids[row, begin:end] for row, begin, end in spans]))
    totals = [float(part.sum()) for part in torch.split(losses, [end - begin for _, begin, end in spans])]
    return {(answer.question, answer.choice): -total for answer, total in zip(batch, totals, strict=True)}


def _question(line: str, where: str) -> Question:
    try:
        values: Any = json.loads(line)
        query, choices, gold = values["query"], values["choices"], values["gold"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{where} is no object with query, choices and gold") from error
    texts = isinstance(query, str) and isinstance(choices, list) and all(isinstance(text, str) for text in choices)
    if not texts or type(gold) is not int or not 0 <= gold < len(choices):
        raise DataError(f"{where}: query must be text, choices a list of texts, gold the index of one of them")
    return Question(query, tuple(choices), gold)
