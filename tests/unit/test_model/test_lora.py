from collections.abc import Callable

import pytest
import torch

from model import (
    PROJECTIONS,
    AdapterError,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    adapter_shapes,
    adapter_state_dict,
    add_lora,
    check_adapter_state,
    initial_adapter,
    load_adapter_state,
    merge_lora,
    remove_lora,
    unmerge_lora,
)

LORA = LoRAConfig(rank=3, alpha=6, targets=PROJECTIONS)
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def random_state(config: ModelConfig, lora: LoRAConfig = LORA, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) * 0.1 for n, s in adapter_shapes(config, lora).items()}


@pytest.fixture
def base_logits(tiny_model: LayeredTransformer) -> torch.Tensor:
    with torch.no_grad():
        return tiny_model(TOKENS)


@torch.no_grad()
def test_a_new_adapter_changes_nothing_a_loaded_one_does_a_removed_one_leaves_nothing(
    tiny_model: LayeredTransformer, config: ModelConfig, base_logits: torch.Tensor
) -> None:
    names = list(tiny_model.state_dict())
    add_lora(tiny_model, LORA)
    assert torch.equal(tiny_model(TOKENS), base_logits)

    load_adapter_state(tiny_model, random_state(config))
    assert (tiny_model(TOKENS) - base_logits).abs().max() > 1e-2

    remove_lora(tiny_model)
    assert torch.equal(tiny_model(TOKENS), base_logits)
    assert list(tiny_model.state_dict()) == names


@torch.no_grad()
def test_merging_keeps_the_logits_and_unmerging_is_exact(
    tiny_model: LayeredTransformer, config: ModelConfig, base_logits: torch.Tensor
) -> None:
    add_lora(tiny_model, LORA)
    load_adapter_state(tiny_model, random_state(config))
    adapted = tiny_model(TOKENS)

    merge_lora(tiny_model)
    merge_lora(tiny_model)  # twice is once
    torch.testing.assert_close(tiny_model(TOKENS), adapted, atol=1e-5, rtol=1e-5)
    with pytest.raises(AdapterError, match="unmerge"):
        load_adapter_state(tiny_model, random_state(config, seed=1))

    unmerge_lora(tiny_model)
    assert torch.equal(tiny_model(TOKENS), adapted)
    merge_lora(tiny_model)
    remove_lora(tiny_model)
    assert torch.equal(tiny_model(TOKENS), base_logits)


@torch.no_grad()
def test_the_branch_is_scaled_b_a_x(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    add_lora(tiny_model, LORA)
    load_adapter_state(tiny_model, random_state(config))
    layer = tiny_model.layers[0].attention.q_proj
    x = torch.randn(2, config.model_dim)
    expected = x @ layer.weight.T + 2.0 * (x @ layer.lora_a.weight.T) @ layer.lora_b.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_only_the_adapter_is_trainable(tiny_model: LayeredTransformer) -> None:
    add_lora(tiny_model, LoRAConfig(rank=2, targets=("q_proj", "v_proj")))
    trainable = {name for name, p in tiny_model.named_parameters() if p.requires_grad}
    assert trainable == {
        f"layers.{n}.attention.{p}.lora_{f}.weight" for n in range(3) for p in ("q_proj", "v_proj") for f in "ab"
    }
    assert set(adapter_state_dict(tiny_model)) == {name.removesuffix(".weight") for name in trainable}


def test_the_initial_adapter_needs_no_model_and_is_what_add_lora_makes(
    tiny_model: LayeredTransformer, config: ModelConfig
) -> None:
    state = initial_adapter(config, LORA, seed=7)
    add_lora(tiny_model, LORA, seed=7)
    actual = adapter_state_dict(tiny_model)

    assert {n: tuple(t.shape) for n, t in state.items()} == adapter_shapes(config, LORA)
    assert all(torch.equal(state[name], actual[name]) for name in state)
    assert all(bool(t.any()) == name.endswith("lora_a") for name, t in state.items())
    other = initial_adapter(config, LORA, seed=8)
    assert not torch.equal(other["layers.0.attention.q_proj.lora_a"], state["layers.0.attention.q_proj.lora_a"])


def test_loading_copies(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    state = random_state(config)
    add_lora(tiny_model, LORA)
    load_adapter_state(tiny_model, state)
    state["layers.0.attention.q_proj.lora_a"].zero_()
    assert adapter_state_dict(tiny_model)["layers.0.attention.q_proj.lora_a"].any()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("layers.0.attention.q_proj.lora_a"), "1 tensors missing"),
        (lambda s: s.update({"layers.9.attention.q_proj.lora_a": torch.zeros(1)}), "1 unexpected"),
        (lambda s: s.update({"layers.0.ffn.up_proj.lora_b": torch.zeros(3, 32)}), r"shape \[3, 32\]"),
        (lambda s: s["layers.1.ffn.up_proj.lora_a"].fill_(float("nan")), "finite"),
        (lambda s: s["layers.1.ffn.up_proj.lora_a"].fill_(float("inf")), "finite"),
        (lambda s: s.update({"layers.0.ffn.up_proj.lora_b": torch.zeros(32, 3, dtype=torch.int8)}), "floating"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_leaves_the_model(
    tiny_model: LayeredTransformer, config: ModelConfig, edit: Callable[..., object], message: str
) -> None:
    add_lora(tiny_model, LORA)
    before = {name: t.clone() for name, t in adapter_state_dict(tiny_model).items()}
    state = random_state(config)
    edit(state)

    with pytest.raises(AdapterError, match=message):
        load_adapter_state(tiny_model, state)
    with pytest.raises(AdapterError, match=message):
        check_adapter_state(state, adapter_shapes(config, LORA))
    assert all(torch.equal(t, before[name]) for name, t in adapter_state_dict(tiny_model).items())


def test_order_of_calls(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    for call in (adapter_state_dict, merge_lora, unmerge_lora, lambda m: load_adapter_state(m, {})):
        with pytest.raises(AdapterError, match="no adapter"):
            call(tiny_model)
    remove_lora(tiny_model)
    add_lora(tiny_model, LORA)
    with pytest.raises(AdapterError, match="already"):
        add_lora(tiny_model, LORA)


def test_dropout_only_while_training(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    add_lora(tiny_model, LoRAConfig(rank=3, alpha=6, dropout=0.5, targets=PROJECTIONS))
    load_adapter_state(tiny_model, random_state(config))
    tiny_model.eval()
    assert torch.equal(tiny_model(TOKENS), tiny_model(TOKENS))
    tiny_model.train()
    assert not torch.equal(tiny_model(TOKENS), tiny_model(TOKENS))


def test_an_adapter_on_some_layers(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    lora = LoRAConfig(rank=2, targets=("q_proj", "down_proj"), layers=(1, 2))
    add_lora(tiny_model, lora)
    assert set(adapter_state_dict(tiny_model)) == set(adapter_shapes(config, lora))
    assert {name.split(".")[1] for name in adapter_state_dict(tiny_model)} == {"1", "2"}
    remove_lora(tiny_model)
    with pytest.raises(AdapterError, match=r"layers \[3\] have no weights"):
        add_lora(tiny_model, LoRAConfig(layers=(0, 3)))
    add_lora(tiny_model, LoRAConfig(layers=(0,)))  # the refused one left nothing behind


def test_a_float32_adapter_on_a_bfloat16_base(tiny_model: LayeredTransformer) -> None:
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    expected = tiny_model.to(torch.bfloat16)(tokens)
    add_lora(tiny_model, LoRAConfig(rank=2), dtype=torch.float32)
    assert {t.dtype for t in adapter_state_dict(tiny_model).values()} == {torch.float32}
    assert torch.equal(tiny_model(tokens), expected)
    merge_lora(tiny_model)
    assert tiny_model(tokens).dtype == torch.bfloat16
