import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import PRESETS, ConfigError, LayeredTransformer, LoRAConfig, ModelConfig, preset


def test_parameter_count_is_what_the_model_has(config: ModelConfig) -> None:
    model = LayeredTransformer(config)

    assert config.parameter_count == sum(p.numel() for p in model.parameters())
    assert config.parameter_shapes() == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_parameter_counts_of_published_models() -> None:
    openelm_270m = ModelConfig(
        vocab_size=32_000,
        model_dim=1280,
        head_dim=64,
        query_heads=(12,) * 5 + (16,) * 7 + (20,) * 4,
        kv_heads=(3,) * 5 + (4,) * 7 + (5,) * 4,
        ffn_dims=(768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120),
        max_context=2048,
        qk_norm=True,
    )
    assert openelm_270m.parameter_count == 271_527_168
    assert preset("smollm2-135m").parameter_count == 134_515_008


def test_tiny_pyramid_falls_with_depth() -> None:
    tiny = preset("tiny-pyramid")
    for plan in (tiny.query_heads, tiny.kv_heads, tiny.ffn_dims):
        assert list(plan) == sorted(plan, reverse=True)
        assert plan[0] > plan[-1]
    assert 1_000_000 < tiny.parameter_count < 2_000_000


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_json_round_trip(name: str) -> None:
    assert ModelConfig.from_json(preset(name).to_json()) == preset(name)
    assert preset(name).to_json() == preset(name).to_json()


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tiny-pyramid"):
        preset("gpt-5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_heads": (4, 2, 3), "kv_heads": (2, 2, 2)}, "layer 2: 3 query heads"),
        ({"query_heads": (4, 2)}, "one entry a layer"),
        ({"head_dim": 7}, "even"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"model_dim": True}, "model_dim"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"rope_base": -1.0}, "rope_base"),
        ({"ffn_dims": ()}, "ffn_dims"),
        ({"ffn_dims": (1 << 30, 1, 1)}, r"ffn_dims\[0\]"),
        ({"kv_heads": ("2", 2, 1)}, r"kv_heads\[0\]"),
        ({"qk_norm": 1}, "qk_norm"),
    ],
)
def test_impossible_shapes_are_refused(config: ModelConfig, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v | {"surprise": 1}, "surprise"),
        (lambda v: {k: x for k, x in v.items() if k != "head_dim"}, "lacks"),
        (lambda v: v | {"format_version": 2}, "format_version"),
        (lambda v: v | {"format": "llama"}, "lamella base import"),
        (lambda v: v | {"kv_heads": 3}, "kv_heads"),
        (lambda v: [v], "format"),
    ],
)
def test_foreign_json_is_refused(config: ModelConfig, edit: Callable[..., object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_json(json.dumps(edit(json.loads(config.to_json()))))


@given(st.one_of(st.text(), st.binary()))
def test_any_bytes_are_a_config_error(text: str | bytes) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_json(text)


def test_lora_config_orders_targets_and_scales() -> None:
    lora = LoRAConfig(rank=4, alpha=8, targets=("down_proj", "q_proj"))
    assert lora.targets == ("q_proj", "down_proj")
    assert lora.scaling == 2.0
    assert lora.adapts(7, "q_proj")
    assert not lora.adapts(7, "k_proj")


def test_lora_config_may_name_layers() -> None:
    lora = LoRAConfig(layers=(5, 2))
    assert lora.layers == (2, 5)
    assert lora.adapts(5, "v_proj")
    assert not lora.adapts(4, "v_proj")


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0}, {"rank": 1.5}, {"alpha": 0}, {"alpha": float("inf")}, {"dropout": 1.0}, {"dropout": -0.1},
        {"targets": ()}, {"targets": ("q_proj", "q_proj")}, {"targets": ("embedding",)},
        {"layers": (1, 1)}, {"layers": (-1,)}, {"layers": (1.0,)}, {"layers": (True,)}, {"layers": (512,)},
    ],
)  # fmt: skip
def test_impossible_lora_configs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        LoRAConfig(**change)
