from pathlib import Path

import pytest
import torch
from torch.nn import functional

from model import (
    DataError,
    EncodedExample,
    Example,
    LayeredTransformer,
    LoRAConfig,
    adapter_state_dict,
    add_lora,
    chat_texts,
    example_losses,
    generate,
    held_out_loss,
    load_version,
    pretrain_tiny,
    sequence_losses,
    train,
)
from model.training import loop


@pytest.fixture
def examples() -> list[EncodedExample]:
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 30, 12, 3, 21, 9, 2]
    return [
        EncodedExample(tuple(torch.randint(3, 260, (n,), generator=generator).tolist()), max(1, n // 3))
        for n in lengths
    ]


@torch.no_grad()
def test_each_loss_is_the_mean_over_its_own_completion(
    tiny_model: LayeredTransformer, examples: list[EncodedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = []
    for example in examples:
        ids = torch.tensor([example.token_ids])
        logits = tiny_model(ids[:, :-1])[0, example.loss_start - 1 :]
        expected.append(functional.cross_entropy(logits, ids[0, example.loss_start :]))
    torch.testing.assert_close(sequence_losses(tiny_model, examples), torch.stack(expected))
    monkeypatch.setattr(loop, "_MAX_LOGIT_ROWS", 4)
    torch.testing.assert_close(sequence_losses(tiny_model, examples), torch.stack(expected))


def test_one_example_does_not_change_the_gradient_of_another(
    tiny_model: LayeredTransformer, examples: list[EncodedExample]
) -> None:
    add_lora(tiny_model, LoRAConfig(rank=2))
    trainable = [p for p in tiny_model.parameters() if p.requires_grad]
    alone = torch.autograd.grad(sequence_losses(tiny_model, examples[:1])[0], trainable)
    beside = torch.autograd.grad(sequence_losses(tiny_model, examples)[0], trainable)
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_evaluation_does_not_depend_on_the_batches(
    tiny_model: LayeredTransformer, examples: list[EncodedExample]
) -> None:
    one_by_one = example_losses(tiny_model, examples, batch_size=1)
    assert example_losses(tiny_model, examples, batch_size=3) == pytest.approx(one_by_one, abs=1e-5)
    assert held_out_loss(tiny_model, examples) == pytest.approx(sum(one_by_one) / len(one_by_one), abs=1e-5)
    assert example_losses(tiny_model, []) == []
    with pytest.raises(DataError, match="no held-out"):
        held_out_loss(tiny_model, [])


def test_evaluation_leaves_the_mode_as_it_was(tiny_model: LayeredTransformer, examples: list[EncodedExample]) -> None:
    for mode in (True, False):
        tiny_model.train(mode)
        example_losses(tiny_model, examples)
        assert tiny_model.training is mode


@pytest.mark.slow
def test_training_lowers_the_loss_and_touches_only_the_adapter(
    tiny_model: LayeredTransformer, examples: list[EncodedExample]
) -> None:
    add_lora(tiny_model, LoRAConfig(rank=4))
    frozen = {n: p.clone() for n, p in tiny_model.named_parameters() if not p.requires_grad}
    before = held_out_loss(tiny_model, examples)
    seen = []
    options = {"steps": 30, "batch_size": 4, "learning_rate": 2e-2}
    train(tiny_model, examples, **options, seed=0, on_step=lambda step, loss: seen.append((step, loss)))

    assert held_out_loss(tiny_model, examples) < before - 0.3
    assert [step for step, _ in seen] == list(range(1, 31))
    assert seen[-1][1] < seen[0][1]
    assert all(torch.equal(p, frozen[n]) for n, p in tiny_model.named_parameters() if n in frozen)
    assert not tiny_model.training


def test_the_seed_decides(tiny_model: LayeredTransformer, examples: list[EncodedExample]) -> None:
    def trained(seed: int) -> torch.Tensor:
        from model import remove_lora

        add_lora(tiny_model, LoRAConfig(rank=2, dropout=0.2))
        train(tiny_model, examples, steps=3, batch_size=2, learning_rate=1e-2, seed=seed)
        weights = torch.cat([t.flatten() for t in adapter_state_dict(tiny_model).values()]).clone()
        remove_lora(tiny_model)
        return weights

    state = torch.get_rng_state()
    first = trained(1)
    torch.manual_seed(999)
    assert torch.equal(trained(1), first)
    assert not torch.equal(trained(2), first)
    torch.set_rng_state(state)


def test_training_needs_examples(tiny_model: LayeredTransformer) -> None:
    with pytest.raises(DataError, match="no examples"):
        train(tiny_model, [], steps=1, batch_size=1, learning_rate=1.0, seed=0)


def test_a_tiny_model_is_pretrained_the_same_way_twice(tmp_path: Path) -> None:
    examples = [Example(prompt=f"what is {i} + 1?", completion=f"it is {i + 1}", timestamp=0.0) for i in range(150)]
    texts = chat_texts(examples)
    losses: list[float] = []
    threads = torch.get_num_threads()
    for name in ("a", "b"):
        pretrain_tiny(tmp_path / name, steps=4, seed=3, texts=texts, on_step=lambda _, loss: losses.append(loss))
    for path in (tmp_path / "a" / "base").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "base" / path.name).read_bytes()
    assert losses[:4] == losses[4:]
    assert torch.get_num_threads() == threads
    assert losses[3] < losses[0] - 0.5

    loaded = load_version(tmp_path / "a")
    assert loaded.model.config.query_heads == (8, 6, 4, 2)
    prompt = loaded.tokenizer.apply_chat([{"role": "user", "content": "hi 12"}], add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nhi 12<|im_end|>\n<|im_start|>assistant\n"
    ids = loaded.tokenizer.encode(prompt)
    assert len(list(generate(loaded.model, ids, max_new_tokens=3))) == 3


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tokens, pretraining needs"):
        pretrain_tiny(tmp_path, steps=1, seed=0, texts=["hello"])
