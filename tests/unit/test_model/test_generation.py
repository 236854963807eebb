import pytest
import torch

from model import ContextLengthError, LayeredTransformer, generate
from model.sampling import sample


@torch.no_grad()
def test_greedy_takes_the_most_likely_token_each_time(tiny_model: LayeredTransformer) -> None:
    prompt = [5, 6, 7]
    expected = list(prompt)
    for _ in range(10):
        expected.append(int(tiny_model(torch.tensor([expected]))[0, -1].argmax()))

    assert list(generate(tiny_model, prompt, max_new_tokens=10)) == expected[3:]


def test_a_stop_token_ends_the_stream_and_is_not_yielded(tiny_model: LayeredTransformer) -> None:
    free = list(generate(tiny_model, [5, 6, 7], max_new_tokens=10))
    stop = free[4]
    stopped = list(generate(tiny_model, [5, 6, 7], max_new_tokens=10, stop_ids={stop}))
    assert stopped == free[: free.index(stop)]


def test_tokens_are_streamed_and_gradients_stay_on_meanwhile(tiny_model: LayeredTransformer) -> None:
    stream = generate(tiny_model, [5], max_new_tokens=5)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_equal_seeds_give_equal_streams(tiny_model: LayeredTransformer) -> None:
    def draw(seed: int | None) -> list[int]:
        return list(generate(tiny_model, [5], max_new_tokens=20, temperature=1.5, top_p=0.9, seed=seed))

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1
    assert len({tuple(draw(None)) for _ in range(5)}) > 1


def test_the_context_ends_the_stream(tiny_model: LayeredTransformer) -> None:
    assert len(list(generate(tiny_model, [5] * 60, max_new_tokens=100))) == 4
    with pytest.raises(ContextLengthError, match="64 tokens"):
        generate(tiny_model, [5] * 64, max_new_tokens=1)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": -1}])
def test_bad_options_are_refused_at_once(tiny_model: LayeredTransformer, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        generate(tiny_model, [5], **({"max_new_tokens": 1} | options))


def test_an_empty_prompt_is_refused(tiny_model: LayeredTransformer) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        generate(tiny_model, [], max_new_tokens=1)


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.05, 0.35]))
    generator = torch.Generator().manual_seed(0)

    def seen(top_p: float) -> set[int]:
        return {sample(logits, temperature=1.0, top_p=top_p, generator=generator) for _ in range(300)}

    assert seen(0.4) == {1}
    assert seen(0.6) == {1, 3}
    assert seen(0.9) == {0, 1, 3}
    assert seen(1.0) == {0, 1, 2, 3}


def test_temperature_sharpens() -> None:
    logits = torch.log(torch.tensor([0.4, 0.6]))
    generator = torch.Generator().manual_seed(0)
    draws = [sample(logits, temperature=0.1, top_p=1.0, generator=generator) for _ in range(200)]
    assert sum(draws) > 190
