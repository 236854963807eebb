import json
import math
from pathlib import Path

import pytest
import torch

from model import (
    ContextLengthError,
    DataError,
    LayeredTransformer,
    Tokenizer,
    choice_accuracy,
    perplexity,
    read_questions,
)
from model.evaluation import PerplexityResult, Question
from model.evaluation.choices import wilson_interval

TOKENS = torch.randint(0, 260, (150,), generator=torch.Generator().manual_seed(0)).tolist()


@torch.no_grad()
def loss_at(model: LayeredTransformer, position: int, begin: int) -> float:
    logits = model(torch.tensor([TOKENS[begin:position]]))[0, -1]
    return float(torch.nn.functional.cross_entropy(logits[None], torch.tensor([TOKENS[position]])))


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 16), (64, 8), (40, 64), (64, 1)])
def test_each_token_is_scored_once_with_enough_before_it(tiny_model, context: int, stride: int) -> None:
    tokens = TOKENS[:90] if stride == 1 else TOKENS
    result = perplexity(tiny_model, tokens, context=context, stride=stride, batch_size=3)
    assert result.tokens == len(tokens) - 1
    assert result.perplexity == pytest.approx(math.exp(float(result.losses.mean())))
    stride = min(stride, context)
    for position in (1, 20, 33, 34, 65, 80, len(tokens) - 1):
        # The first window that reaches it.
        begin = max(0, math.ceil((position - context) / stride)) * stride
        assert float(result.losses[position - 1]) == pytest.approx(loss_at(tiny_model, position, begin), abs=1e-4)


def test_batches_and_limits_change_nothing_else(tiny_model) -> None:
    steps = []
    whole = perplexity(tiny_model, TOKENS, context=32, stride=32, batch_size=1)
    part = perplexity(
        tiny_model, TOKENS, context=32, stride=32, batch_size=2, max_tokens=97, on_progress=lambda *s: steps.append(s)
    )
    torch.testing.assert_close(part.losses, whole.losses[:96], atol=1e-4, rtol=1e-4)
    assert steps == [(2, 3), (3, 3)]


def test_texts_that_cannot_be_scored(tiny_model) -> None:
    with pytest.raises(DataError, match="two tokens"):
        perplexity(tiny_model, [5])
    with pytest.raises(ContextLengthError):
        perplexity(tiny_model, TOKENS, context=100)


def test_comparison_is_paired() -> None:
    noise = torch.randn(2560, generator=torch.Generator().manual_seed(0))
    reference = PerplexityResult(3 + noise)
    ratio, margin = PerplexityResult(3 + noise + 0.01).relative_loss(reference)
    assert ratio == pytest.approx(math.expm1(0.01), rel=1e-3)
    assert margin < 1e-5
    _, margin = PerplexityResult(3 + noise.flip(0)).relative_loss(reference)
    assert 0.01 < margin < 0.2
    assert PerplexityResult(noise[:300]).relative_loss(PerplexityResult(noise[:300]))[1] == math.inf
    with pytest.raises(DataError, match="300 tokens"):
        reference.relative_loss(PerplexityResult(noise[:300]))


QUESTIONS = [
    Question("Question: one?\n", ("yes", "no", "perhaps not"), 0),
    Question("Question: another, longer one?", ("right", "wrong"), 1),
    Question("Question: the last?", ("a", "bb", "ccc", "dddd"), 3),
]


@torch.no_grad()
def test_answers_are_judged_by_their_log_probability(tiny_model, byte_tokenizer: Tokenizer) -> None:
    right, right_normalised = 0, 0
    for question in QUESTIONS:
        prompt = byte_tokenizer.encode(question.query.strip() + "\nAnswer:")
        scores = []
        for choice in question.choices:
            ids = prompt + byte_tokenizer.encode(" " + choice)
            log_probabilities = tiny_model(torch.tensor([ids]))[0].log_softmax(-1)
            scores.append(sum(float(log_probabilities[i - 1, ids[i]]) for i in range(len(prompt), len(ids))))
        right += scores.index(max(scores)) == question.gold
        by_byte = [score / len(choice) for score, choice in zip(scores, question.choices, strict=True)]
        right_normalised += by_byte.index(max(by_byte)) == question.gold
    for batch_tokens in (1, 100, 4096):
        steps = []
        result = choice_accuracy(
            tiny_model,
            byte_tokenizer,
            QUESTIONS,
            batch_tokens=batch_tokens,
            on_progress=lambda *step, steps=steps: steps.append(step),
        )
        assert (result.right, result.right_normalised, result.questions) == (right, right_normalised, 3)
        assert result.accuracy == right / 3
        assert result.answered == tuple(c == q.gold for c, q in zip(result.chosen, QUESTIONS, strict=True))
        assert steps[-1] == (9, 9)
    low, high = result.interval_normalised
    assert 0 <= low <= result.accuracy_normalised <= high <= 1


def test_wilson() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert wilson_interval(10, 10)[1] == pytest.approx(1)


def test_questions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    row = {"query": "Q", "choices": ["a", "b"], "gold": 1, "more": 0}
    path.write_text(f"{json.dumps(row)}\n\n{json.dumps(row)}\n")
    assert read_questions(path) == [Question("Q", ("a", "b"), 1)] * 2
    assert len(read_questions(path, limit=1)) == 1


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"query": "Q", "choices": ["a"]}', '{"query": 1, "choices": ["a"], "gold": 0}',
     '{"query": "Q", "choices": "ab", "gold": 0}', '{"query": "Q", "choices": ["a"], "gold": 1}',
     '{"query": "Q", "choices": ["a"], "gold": true}', '{"query": "Q", "choices": [], "gold": 0}'],
)  # fmt: skip
def test_a_damaged_line_is_named_but_not_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f'{{"query": "Q", "choices": ["a"], "gold": 0}}\n{line}\n')
    with pytest.raises(DataError, match=r"q\.jsonl, line 2"):
        read_questions(path)


def test_files_without_questions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no questions"):
        read_questions(tmp_path / "empty.jsonl")
