"""Layers that share weights, and layers that attend over another layer's keys and values."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import (
    PROJECTIONS,
    CheckpointError,
    ConfigError,
    EncodedExample,
    KVCache,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    Tokenizer,
    adapter_shapes,
    adapter_state_dict,
    add_lora,
    load_adapter_state,
    load_checkpoint,
    load_version,
    merge_lora,
    quantize_model,
    remove_lora,
    save_adapter,
    save_checkpoint,
    save_quantized,
    sequence_losses,
    uniform_plan,
    unmerge_lora,
)
from model.transformer import Attention

TOKENS = torch.randint(0, 260, (2, 19), generator=torch.Generator().manual_seed(1))
PLAIN = ModelConfig(
    vocab_size=260,
    model_dim=24,
    head_dim=8,
    query_heads=(4, 4, 4, 4, 2, 2),
    kv_heads=(2,) * 4 + (1, 1),
    ffn_dims=(32,) * 4 + (16, 16),
    max_context=64,
    qk_norm=True,
)
SHARINGS = {
    "weights": {"weights_of": (0, 0, 2, 2, 4, 4)},
    "kv": {"kv_of": (0, 0, 2, 0, 4, 4)},
    "both": {"weights_of": (0, 0, 2, 2, 4, 4), "kv_of": (0, 0, 0, 0, 4, 4)},
    "kv of the layer whose weights it runs": {"weights_of": (0, 0, 2, 2, 4, 5), "kv_of": (0, 1, 2, 2, 4, 4)},
}


@pytest.fixture(params=sorted(SHARINGS))
def shared(request) -> ModelConfig:
    return dataclasses.replace(PLAIN, **SHARINGS[request.param])


def randomised(config: ModelConfig, seed: int = 0) -> LayeredTransformer:
    model = LayeredTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    return model.eval()


def random_state(config: ModelConfig, lora: LoRAConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: torch.randn(s, generator=generator) * 0.2 for n, s in adapter_shapes(config, lora).items()}


def test_what_is_shared_is_stored_once(shared: ModelConfig) -> None:
    model = randomised(shared)
    assert shared.parameter_shapes() == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shared.parameter_count < PLAIN.parameter_count
    assert len(model.layers) == shared.num_layers == 6


@torch.no_grad()
def test_cached_pieces_give_the_logits_of_one_pass(shared: ModelConfig) -> None:
    model = randomised(shared)
    cache = KVCache(shared, batch_size=2, max_length=19)
    pieces = [model(piece, cache) for piece in TOKENS.split([5, 1, 7, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(TOKENS), atol=1e-5, rtol=1e-5)
    assert cache.num_bytes == 2 * 19 * shared.kv_cache_elements() * 4


@torch.no_grad()
def test_shared_weights_equal_copies_of_them() -> None:
    shared = dataclasses.replace(PLAIN, **SHARINGS["weights"])
    model, copied = randomised(shared), LayeredTransformer(PLAIN).eval()
    state = model.state_dict()
    copied.load_state_dict(state)  # under every layer's name
    assert torch.equal(copied(TOKENS), model(TOKENS))


@torch.no_grad()
def test_shared_keys_and_values_are_those_of_the_other_layer(monkeypatch) -> None:
    shared = dataclasses.replace(PLAIN, **SHARINGS["kv"])
    model = randomised(shared)
    calls: list[tuple[int, bool, int]] = []
    forward = Attention.forward

    def watched(self, *arguments, layer, shared):
        mixed, attended = forward(self, *arguments, layer=layer, shared=shared)
        calls.append((layer, shared is not None, attended[0].data_ptr()))
        return mixed, attended

    monkeypatch.setattr(Attention, "forward", watched)
    model(TOKENS)
    assert [(layer, lent) for layer, lent, _ in calls] == [
        (0, False), (1, True), (2, False), (3, True), (4, False), (5, True),
    ]  # fmt: skip
    assert calls[1][2] == calls[3][2] == calls[0][2] != calls[2][2]
    assert calls[5][2] == calls[4][2]


@torch.no_grad()
def test_round_trip_on_disk(shared: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = randomised(shared)
    save_checkpoint(tmp_path / "base", model, byte_tokenizer, dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "base")
    assert loaded.config == shared
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    (tmp_path / "base" / "config.json").write_text(PLAIN.to_json())
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(tmp_path / "base")


@torch.no_grad()
def test_one_adapter_for_each_stored_weight(shared: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    lora = LoRAConfig(rank=2, targets=PROJECTIONS)
    model = randomised(shared)
    base = model(TOKENS)
    add_lora(model, lora)
    assert torch.equal(model(TOKENS), base)
    assert {n: tuple(t.shape) for n, t in adapter_state_dict(model).items()} == adapter_shapes(shared, lora)
    state = random_state(shared, lora)
    load_adapter_state(model, state)
    adapted = model(TOKENS)
    assert (adapted - base).abs().max() > 1e-2

    merge_lora(model)
    torch.testing.assert_close(model(TOKENS), adapted, atol=1e-4, rtol=1e-4)
    unmerge_lora(model)
    save_checkpoint(tmp_path / "base", model, byte_tokenizer, dtype=torch.float32)
    save_adapter(tmp_path / "adapter", state, lora, dtype=torch.float32)
    assert torch.equal(load_version(tmp_path).model(TOKENS), adapted)
    remove_lora(model)
    assert torch.equal(model(TOKENS), base)


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_a_shared_weight_is_quantised_once_and_takes_an_adapter(
    shared: ModelConfig, bits: int, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = randomised(shared)
    quantize_model(model, uniform_plan(shared, bits=bits, group_size=8))
    quantised = model(TOKENS)
    save_quantized(tmp_path / "base", model, byte_tokenizer, dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "base")
    torch.testing.assert_close(loaded(TOKENS), quantised)

    lora = LoRAConfig(rank=2, targets=PROJECTIONS)
    add_lora(loaded, lora)
    load_adapter_state(loaded, random_state(shared, lora))
    adapted = loaded(TOKENS)
    assert (adapted - quantised).abs().max() > 1e-2
    remove_lora(loaded)
    assert torch.equal(loaded(TOKENS), model(TOKENS))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_hooks_sum_over_the_layers_that_share_a_weight(shared: ModelConfig) -> None:
    """Per-example gradients (what differential privacy clips) are those of one backward pass an example."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    model, lora = randomised(shared), LoRAConfig(rank=2, targets=PROJECTIONS)
    add_lora(model, lora)
    load_adapter_state(model, random_state(shared, lora))
    batch = [EncodedExample(tuple(range(3, 3 + n)), n // 2) for n in (4, 20, 11)]
    trainable = [p for p in model.parameters() if p.requires_grad]
    expected = [torch.autograd.grad(sequence_losses(model, [example])[0], trainable) for example in batch]

    hooks = GradSampleHooks(model.train(), loss_reduction="sum")
    sequence_losses(model, batch).sum().backward()
    for index, parameter in enumerate(trainable):
        by_loop = torch.stack([gradients[index] for gradients in expected])
        torch.testing.assert_close(parameter.grad_sample, by_loop, atol=1e-4, rtol=1e-3)
    hooks.cleanup()


def test_unused_sharing_leaves_the_bytes_of_config_json_alone(config: ModelConfig) -> None:
    assert "weights_of" not in config.to_json()
    assert "kv_of" not in config.to_json()
    spelled_out = dataclasses.replace(config, weights_of=(0, 1, 2), kv_of=(0, 1, 2))
    assert spelled_out == config
    assert spelled_out.to_json() == config.to_json()


def test_json_round_trip(shared: ModelConfig) -> None:
    assert ModelConfig.from_json(shared.to_json()) == shared
    values = json.loads(shared.to_json())
    assert [key for key in ("weights_of", "kv_of") if key in values] == [
        key for key in ("weights_of", "kv_of") if getattr(shared, key)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_of": (0, 0)}, "weights_of must be empty or have one entry"),
        ({"weights_of": [0, 0, 2, 2, 4, 4]}, "weights_of must be empty or have one entry"),
        ({"weights_of": (1, 1, 2, 3, 4, 5)}, r"weights_of\[0\] must name layer 0"),
        ({"kv_of": (0, True, 2, 3, 4, 5)}, r"kv_of\[1\] must name"),
        ({"kv_of": (0, -1, 2, 3, 4, 5)}, r"kv_of\[1\] must name"),
        ({"weights_of": (0, 0, 1, 3, 4, 5)}, r"weights_of\[2\] is layer 1, which takes its own from layer 0"),
        ({"weights_of": (0, 1, 2, 3, 3, 5)}, "layer 4 runs the weights of layer 3, but query_heads says 2"),
        ({"kv_of": (0, 1, 2, 3, 0, 5)}, "layer 4 attends over .* layer 0, but kv_heads says 1"),
        (
            {"weights_of": (0, 1, 2, 2, 4, 5), "kv_of": (0, 1, 0, 3, 4, 5)},
            r"layer 3 computes keys and values with the weights of layer 2, .* set kv_of\[3\]",
        ),
    ],
)
def test_sharing_that_cannot_work_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PLAIN, **change)


UNIFORM = dataclasses.replace(PLAIN, query_heads=(4,) * 6, kv_heads=(2,) * 6, ffn_dims=(32,) * 6)
SHARING = st.lists(st.integers(0, 5), min_size=6, max_size=6).map(tuple)


@pytest.mark.slow
@given(weights_of=SHARING, kv_of=SHARING)
def test_any_sharing_is_refused_or_runs(weights_of: tuple[int, ...], kv_of: tuple[int, ...]) -> None:
    kept = [tuple(min(s, i) for i, s in enumerate(sharing)) for sharing in (weights_of, kv_of)]
    try:
        config = dataclasses.replace(UNIFORM, weights_of=kept[0], kv_of=kept[1])
    except ConfigError:
        return
    with torch.no_grad():
        assert torch.isfinite(LayeredTransformer(config)(TOKENS[:, :3])).all()
