import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulators.exchange import add_adapter, make_tree

from model import (
    ForeignModelError,
    LayeredTransformer,
    ModelConfig,
    Tokenizer,
    import_huggingface,
    load_checkpoint,
    load_version,
    merge_lora,
    preset,
)
from model.errors import ExportError
from model.export import export_hf
from model.export.foreign_configs import linear_multipliers
from model.importers.huggingface_configs import openelm_config

TOKENS = torch.randint(0, 260, (2, 33), generator=torch.Generator().manual_seed(0))
UNIFORM = {"qk_norm": False, "query_heads": (4,) * 3, "kv_heads": (2,) * 3, "ffn_dims": (32,) * 3}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("with_adapter", [True, False])
@torch.no_grad()
def test_transformers_llama_computes_the_same(
    config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path, tied: bool, with_adapter: bool
) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    config = replace(config, **UNIFORM, tied_embeddings=tied, rope_base=500.0, norm_eps=1e-3)
    make_tree(tmp_path, config, byte_tokenizer)
    if with_adapter:
        add_adapter(tmp_path, config, stddev=0.1)
    assert export_hf(tmp_path, tmp_path / "hf", dtype="float32") == "llama"
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ours = load_version(tmp_path).model
    torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), atol=1e-4, rtol=0)
    assert theirs.generation_config.eos_token_id == [2, 0]
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    chat = [{"role": "user", "content": "hi"}]
    expected = byte_tokenizer.apply_chat(chat, add_generation_prompt=True)
    assert their_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == expected
    assert their_tokenizer("né <|im_end|>", add_special_tokens=False)["input_ids"] == byte_tokenizer.encode(
        "né <|im_end|>"
    )


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_layered_plan_comes_back(
    config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path, tied: bool, qk_norm: bool
) -> None:
    config = replace(config, tied_embeddings=tied, qk_norm=qk_norm, norm_eps=1e-6)
    model = make_tree(tmp_path, config, byte_tokenizer)
    assert export_hf(tmp_path, tmp_path / "hf", dtype="float32") == "openelm"
    assert import_huggingface(tmp_path / "hf", tmp_path / "back", dtype=torch.float32) == config
    back = load_checkpoint(tmp_path / "back")
    for name, parameter in model.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name
    names = set(safetensors.torch.load_file(tmp_path / "hf" / "model.safetensors"))
    assert {"transformer.layers.0.attn.qkv_proj.weight", "transformer.layers.2.ffn.proj_1.weight"} < names
    assert ("transformer.layers.1.attn.q_norm.weight" in names) == qk_norm
    assert ("lm_head.weight" in names) == (not tied)


def test_names_as_corenet_writes_them_are_read(config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_tree(tmp_path, replace(config, norm_eps=1e-6), byte_tokenizer)
    export_hf(tmp_path, tmp_path / "hf", dtype="float32")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name.removeprefix("transformer."): t for name, t in tensors.items()}, path)
    import_huggingface(tmp_path / "hf", tmp_path / "back", dtype=torch.float32)
    torch.testing.assert_close(load_checkpoint(tmp_path / "back")(TOKENS), model(TOKENS))


@torch.no_grad()
def test_shared_layers_and_a_merged_adapter_are_written_out(
    config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shared = replace(
        config, query_heads=(4, 4, 2), kv_heads=(2, 2, 1), ffn_dims=(32, 32, 16), weights_of=(0, 0, 2), norm_eps=1e-6
    )
    make_tree(tmp_path, shared, byte_tokenizer)
    add_adapter(tmp_path, shared, stddev=0.1)
    ours = load_version(tmp_path).model
    merge_lora(ours)
    export_hf(tmp_path, tmp_path / "hf", dtype="float32")
    import_huggingface(tmp_path / "hf", tmp_path / "back", dtype=torch.float32)
    torch.testing.assert_close(load_checkpoint(tmp_path / "back")(TOKENS), ours(TOKENS), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05"),
        ({"query_heads": (4, 2, 2), "kv_heads": (2, 2, 1), "kv_of": (0, 0, 2)}, r"layers \[1\]"),
    ],
)
def test_what_openelm_cannot_say_is_refused(
    config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    make_tree(tmp_path, replace(config, **{"norm_eps": 1e-6, **change}), byte_tokenizer)
    with pytest.raises(ExportError, match=message):
        export_hf(tmp_path, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_folder_is_not_overwritten_by_its_own_export(
    config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    make_tree(tmp_path, replace(config, norm_eps=1e-6), byte_tokenizer)
    with pytest.raises(ExportError, match="another folder"):
        export_hf(tmp_path, tmp_path / "base")
    with pytest.raises(ExportError, match="choose float32"):
        export_hf(tmp_path, tmp_path / "hf", dtype="int8")


def test_published_plans_are_written_as_their_own_class_reads_them() -> None:
    for name in ("openelm-270m", "openelm-450m", "openelm-1.1b", "openelm-3b"):
        pair = linear_multipliers(preset(name))
        assert pair is not None
        shape = {"num_transformer_layers": preset(name).num_layers, "model_dim": preset(name).model_dim}
        values = {
            **shape, "head_dim": preset(name).head_dim, "vocab_size": 32_000, "max_context_length": 2048,
            "num_gqa_groups": 4, "qkv_multipliers": list(pair), "ffn_multipliers": [0.5, 4.0],
            "normalize_qk_projections": True, "share_input_output_layers": True,
        }  # fmt: skip
        assert openelm_config(values) == preset(name)


@given(heads=st.lists(st.integers(1, 6), min_size=1, max_size=6), group=st.integers(1, 3))
def test_multipliers_give_the_heads_or_none(heads: list[int], group: int) -> None:
    config = ModelConfig(
        vocab_size=8,
        model_dim=48,
        head_dim=8,
        query_heads=tuple(group * count for count in heads),
        kv_heads=tuple(heads),
        ffn_dims=(8,) * len(heads),
        max_context=8,
    )
    pair = linear_multipliers(config)
    rises_or_falls = heads in (sorted(heads), sorted(heads, reverse=True))
    assert pair is None or rises_or_falls
    if len(set(heads)) == 1:
        assert pair is not None


def openelm_folder(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    make_tree(tmp_path, replace(config, norm_eps=1e-6), tokenizer)
    export_hf(tmp_path, tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_fn_name": "gelu"}, "activation_fn_name is 'gelu'"),
        ({"ffn_with_glu": False}, "ffn_with_glu"),
        ({"normalization_layer_name": "layer_norm"}, "layer_norm"),
        ({"num_query_heads": [4, 2]}, "one entry a layer"),
        ({"num_query_heads": [4, 2, 4]}, "shape"),
        ({"ffn_multipliers": [1, 2, 3, 4]}, "4 multipliers for 3 layers"),
        ({"ffn_multipliers": [1, "x", 3]}, "positive numbers"),
        ({"ffn_multipliers": [1e300, 1, 1]}, "positive numbers"),
        ({"ffn_dim_divisor": 0}, "openelm|config.json"),
        ({"model_dim": "wide"}, "wide"),
        ({"num_transformer_layers": 10**12}, "number of layers"),
        ({"normalize_qk_projections": False}, "does not have"),
        ({"share_input_output_layers": False}, r"lacks 1 tensors, such as \['lm_head"),
    ],
)
def test_an_openelm_config_that_does_not_fit_is_refused(
    config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = openelm_folder(config, byte_tokenizer, tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ForeignModelError, match=message):
        import_huggingface(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=5,
)
KEYS = [
    "num_transformer_layers", "model_dim", "head_dim", "num_query_heads", "num_kv_heads", "num_gqa_groups",
    "qkv_multipliers", "ffn_multipliers", "ffn_dim_divisor", "vocab_size", "max_context_length", "rope_freq_constant",
    "rms_norm_eps", "normalize_qk_projections", "share_input_output_layers",
]  # fmt: skip
SOUND = {
    "num_transformer_layers": 2, "model_dim": 32, "head_dim": 8, "num_gqa_groups": 2, "qkv_multipliers": [0.5, 1.0],
    "ffn_multipliers": [0.5, 4.0], "ffn_dim_divisor": 8, "vocab_size": 10, "max_context_length": 16,
}  # fmt: skip


@given(change=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3))
def test_any_config_is_a_shape_or_an_error(change: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("folder")
    (folder / "config.json").write_text(json.dumps({"model_type": "openelm", **SOUND, **change}))
    with pytest.raises(ForeignModelError):  # the tokenizer is missing, if not something before it
        import_huggingface(folder, folder / "ours")


def test_the_same_source_gives_the_same_bytes(config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    make_tree(tmp_path, replace(config, norm_eps=1e-6), byte_tokenizer)
    for name in ("a", "b"):
        export_hf(tmp_path, tmp_path / name, dtype="bfloat16")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    stored = safetensors.torch.load_file(tmp_path / "a" / "model.safetensors")
    model: LayeredTransformer = load_checkpoint(tmp_path / "base")
    expected = model.embedding.weight.bfloat16()
    assert torch.equal(stored["transformer.token_embeddings.weight"], expected)
