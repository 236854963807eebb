"""GGUF files, read back by our importer and by the gguf package; llama.cpp itself is asked in the integration tests."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from simulators.exchange import add_adapter, byte_pair_tokenizer, make_tree

from model import (
    CheckpointError,
    ModelConfig,
    Tokenizer,
    import_gguf,
    load_checkpoint,
    load_version,
    merge_lora,
    quantize_model,
    save_quantized,
    uniform_plan,
)
from model.errors import AdapterError, ExportError
from model.export import export_gguf, export_gguf_adapter
from model.export.gguf_encoding import encode, repack
from model.export.weights import QuantizedRows
from model.quantization.sensitivity import raised

SHAPES = {
    "openelm": {},
    "deci": {"qk_norm": False},
    "llama": {"qk_norm": False, "query_heads": (4,) * 3, "kv_heads": (2,) * 3, "ffn_dims": (32,) * 3},
}


@pytest.fixture
def merging_tokenizer() -> Tokenizer:
    return byte_pair_tokenizer()


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_comes_back(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path, architecture: str, tied: bool
) -> None:
    if architecture == "openelm" and not tied:
        pytest.skip("llama.cpp's openelm has no output of its own")
    config = replace(config, **SHAPES[architecture], tied_embeddings=tied)
    model = make_tree(tmp_path, config, merging_tokenizer)
    assert export_gguf(tmp_path, tmp_path / "x.gguf", quantization="f32") == architecture
    assert import_gguf(tmp_path / "x.gguf", tmp_path / "back" / "base", dtype=torch.float32) == config
    back = load_version(tmp_path / "back")
    for name, parameter in model.named_parameters():
        assert torch.equal(back.model.get_parameter(name), parameter), name
    text = "né  12 <|im_end|>"
    assert back.tokenizer.encode(text) == merging_tokenizer.encode(text)
    assert back.tokenizer.stop_ids == merging_tokenizer.stop_ids
    message = [{"role": "user", "content": "hi"}]
    expected = merging_tokenizer.apply_chat(message, add_generation_prompt=True)
    assert back.tokenizer.apply_chat(message, add_generation_prompt=True) == expected


def test_shared_layers_are_written_for_every_layer_that_runs_them(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shared = replace(config, query_heads=(4, 4, 2), kv_heads=(2, 2, 1), ffn_dims=(32, 32, 16), weights_of=(0, 0, 2))
    model = make_tree(tmp_path, shared, merging_tokenizer)
    export_gguf(tmp_path, tmp_path / "x.gguf", quantization="f32")
    import_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype=torch.float32)
    back, tokens = load_checkpoint(tmp_path / "back"), torch.arange(20)[None]
    assert back.config == replace(shared, weights_of=())
    torch.testing.assert_close(back(tokens), model(tokens))


def test_keys_and_values_of_another_layer_cannot_be_said(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    make_tree(tmp_path, replace(config, query_heads=(4, 2, 2), kv_heads=(2, 2, 1), kv_of=(0, 0, 2)), merging_tokenizer)
    with pytest.raises(ExportError, match=r"layers \[1\] attend .* torch back end"):
        export_gguf(tmp_path, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_an_untied_head_of_openelm_is_refused(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    make_tree(tmp_path, replace(config, tied_embeddings=False), merging_tokenizer)
    with pytest.raises(ExportError, match=r"output\.weight: .* tied_embeddings"):
        export_gguf(tmp_path, tmp_path / "x.gguf")


def test_an_adapter_is_merged_or_a_file_of_its_own(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    make_tree(tmp_path, config, merging_tokenizer)
    add_adapter(tmp_path, config)
    merged = load_version(tmp_path).model
    merge_lora(merged)
    export_gguf(tmp_path, tmp_path / "x.gguf", quantization="f32")
    import_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype=torch.float32)
    back, tokens = load_checkpoint(tmp_path / "back"), torch.arange(20)[None]
    torch.testing.assert_close(back(tokens), merged(tokens), atol=1e-5, rtol=0)

    assert export_gguf_adapter(tmp_path / "adapter", tmp_path / "a.gguf", base=tmp_path / "base") == "openelm"
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert (fields["general.type"], fields["adapter.type"], fields["adapter.lora.alpha"]) == ("adapter", "lora", 6.0)
    base = load_checkpoint(tmp_path / "base")
    a, b = tensors["blk.0.attn_qkv.weight.lora_a"], tensors["blk.0.attn_qkv.weight.lora_b"]
    delta = b @ a * (6.0 / len(a))
    names = [f"layers.0.attention.{p}_proj" for p in "qkv"]
    expected = [(merged.get_submodule(n).weight - base.get_submodule(n).weight).detach() for n in names]
    np.testing.assert_allclose(delta, torch.cat(expected).numpy(), atol=1e-5)


def test_an_adapter_of_another_base_is_refused(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    make_tree(tmp_path, config, merging_tokenizer)
    add_adapter(tmp_path, replace(config, ffn_dims=(32, 24, 24)))
    for run in (
        lambda: export_gguf(tmp_path, tmp_path / "x.gguf"),
        lambda: export_gguf_adapter(tmp_path / "adapter", tmp_path / "x.gguf", base=tmp_path / "base"),
    ):
        with pytest.raises(AdapterError, match=r"layers\.2\.ffn\.down_proj\.lora_a .* made for the base"):
            run()


def test_the_same_source_gives_the_same_bytes(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    make_tree(tmp_path, config, merging_tokenizer)
    for name in ("a", "b"):
        export_gguf(tmp_path, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0", "q4_0"])
def test_what_matrices_are_stored_as(merging_tokenizer: Tokenizer, tmp_path: Path, quantization: str) -> None:
    config = ModelConfig(
        vocab_size=260, model_dim=64, head_dim=16, query_heads=(2,), kv_heads=(1,), ffn_dims=(48,), max_context=64
    )
    model = make_tree(tmp_path, config, merging_tokenizer)
    export_gguf(tmp_path / "base", tmp_path / "x.gguf", quantization=quantization)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_up.weight"] == quantization.upper()
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if quantization.startswith("q") else quantization.upper())
    assert kinds["token_embd.weight"] == {"q4_0": "Q8_0"}.get(quantization, quantization.upper())
    import_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype=torch.float32)
    back = load_checkpoint(tmp_path / "back")
    worst = {"f16": 1e-3, "bf16": 8e-3, "q8_0": 1 / 127, "q4_0": 1 / 8}[quantization]
    for name, parameter in model.named_parameters():
        assert (back.get_parameter(name) - parameter).abs().max() <= worst * parameter.abs().max()


def test_padded_rows_of_the_embedding_get_unused_tokens(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    make_tree(tmp_path, replace(config, vocab_size=300), merging_tokenizer)
    export_gguf(tmp_path, tmp_path / "x.gguf")
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    tokens, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type"))
    assert len(tokens) == len(types) == 300
    assert tokens[299] == "[PAD299]"
    assert types[:3] == [3, 3, 3]
    assert types[299] == 5


def change_tokenizer(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def apply(base: Path) -> None:
        content = json.loads((base / "tokenizer.json").read_text())
        change(content)
        (base / "tokenizer.json").write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_tokenizer(lambda c: c["model"].update(type="Unigram")), "Unigram"),
        (change_tokenizer(lambda c: c["model"].update(byte_fallback=True)), "byte_fallback"),
        (change_tokenizer(lambda c: c["model"].update(merges=[])), "no merges"),
        (change_tokenizer(lambda c: c.update(normalizer={"type": "NFC"})), "a normalizer"),
        (change_tokenizer(lambda c: c.update(pre_tokenizer={"type": "Metaspace"})), "Metaspace"),
        (change_tokenizer(lambda c: c.update(pre_tokenizer=None)), "no name for"),
        (change_tokenizer(lambda c: c["model"]["vocab"].update(x=10**9)), "outside the embedding"),
        (change_tokenizer(lambda c: c["model"]["vocab"].update(x="y")), "malformed"),
        (change_tokenizer(lambda c: c.pop("model")), "malformed"),
        (change_tokenizer(lambda c: c.update(added_tokens=[{}])), "malformed"),
        (lambda base: (base / "tokenizer.json").write_text("[" * 100_000), "malformed"),
    ],
)
def test_a_tokenizer_that_llama_cpp_has_no_form_for_is_refused(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    make_tree(tmp_path, config, merging_tokenizer)
    damage(tmp_path / "base")
    with pytest.raises(ExportError, match=message):
        export_gguf(tmp_path, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: (base / "model.safetensors").unlink(), "cannot read"),
        (lambda base: (base / "model.safetensors").write_bytes(b"\xff" * 100), "no sound safetensors"),
        (lambda base: (base / "config.json").write_text("{}"), r"config\.json"),
        (lambda base: (base / "tokenizer_config.json").write_text("[]"), "no JSON object"),
        (lambda base: (base / "tokenizer.json").unlink(), "cannot read"),
    ],
)
def test_a_damaged_source_is_refused(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    make_tree(tmp_path, config, merging_tokenizer)
    damage(tmp_path / "base")
    with pytest.raises(CheckpointError, match=message):
        export_gguf(tmp_path, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "embedding.weight has"), (1e6, "token_embd|bf16")])
def test_numbers_that_do_not_fit_are_refused(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path, value: float, message: str
) -> None:
    from safetensors.torch import load_file, save_file

    make_tree(tmp_path, config, merging_tokenizer)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["embedding.weight"][5, 5] = value
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises((CheckpointError, ExportError), match=message):
        export_gguf(tmp_path, tmp_path / "x.gguf", quantization="f16")


def test_missing_package_and_wrong_quantization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match="choose f32, f16"):
        export_gguf(tmp_path, tmp_path / "x.gguf", quantization="q5_k")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match="pip install gguf"):
        export_gguf(tmp_path, tmp_path / "x.gguf")


ROWS = hnp.arrays(np.float32, (3, 64), elements=st.floats(-100, 100, width=32))


@given(rows=ROWS)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_encoded_rows_mean_the_numbers(kind: str, rows: np.ndarray) -> None:
    encoded = encode(rows, kind, name="x")
    decoded = gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType[kind])
    largest = np.abs(rows).reshape(3, -1, 32).max(axis=-1, keepdims=True)
    # Half a step, and half of float16's smallest step for scales that are hardly above it.
    worst = {"F32": 0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.505 / 127, "Q4_0": 1.01 / 8, "Q4_1": 1.05 / 15}[
        kind
    ] * largest + 1e-5
    assert (np.abs(decoded - rows).reshape(3, -1, 32) <= worst).all()


@given(
    values=hnp.arrays(np.uint8, (2, 64), elements=st.integers(0, 15)),
    scales=hnp.arrays(np.float16, (2, 2), elements=st.floats(-1, 1, width=16)),
    zeros=hnp.arrays(np.float16, (2, 2), elements=st.floats(-1, 1, width=16)),
    is_symmetric=st.booleans(),
)
def test_int4_groups_keep_their_numbers(
    values: np.ndarray, scales: np.ndarray, zeros: np.ndarray, is_symmetric: bool
) -> None:
    wide = QuantizedRows(values, scales.astype(np.float32), None if is_symmetric else zeros.astype(np.float32), 32)
    kind = "Q4_0" if is_symmetric else "Q4_1"
    packed = repack(wide, kind)
    assert packed is not None
    decoded = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(decoded, wide.floats())
    assert repack(wide, "Q4_1" if is_symmetric else "Q4_0") is None
    assert repack(wide, "Q8_0") is None


@pytest.mark.parametrize(
    ("settings", "quantization", "kinds", "worst"),
    [
        ({"bits": 4, "embedding_bits": 16}, "q4_0", ("Q4_1", "Q8_0"), 0.2),  # the embedding is rounded now
        ({"bits": 4, "embedding_bits": 16}, "stored", ("Q4_1", "F16"), 1e-3),
        ({"bits": 4, "symmetric": True, "embedding_bits": 16}, "stored", ("Q4_0", "F16"), 1e-3),
        ({"bits": 4}, "q4_0", ("Q4_1", "Q4_1"), 1e-4),
        ({"bits": 4, "scale_bits": 8}, "stored", ("Q4_1", "Q4_1"), 1e-4),
        ({"bits": 8, "embedding_bits": 16}, "stored", ("Q8_0", "F16"), 2e-2),  # int8's scales become float16
    ],
)
def test_a_quantised_base_keeps_its_whole_numbers(
    merging_tokenizer: Tokenizer, tmp_path: Path, settings: dict, quantization: str, kinds: object, worst: float
) -> None:
    config = ModelConfig(
        vocab_size=260, model_dim=64, head_dim=16, query_heads=(4, 2), kv_heads=(2, 1), ffn_dims=(64, 32),
        max_context=64, qk_norm=True,
    )  # fmt: skip
    make_tree(tmp_path, config, merging_tokenizer)
    model = load_checkpoint(tmp_path / "base")
    quantize_model(model, uniform_plan(config, **settings))
    save_quantized(tmp_path / "few", model, merging_tokenizer)
    export_gguf(tmp_path / "few", tmp_path / "x.gguf", quantization=quantization)
    found = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert (found["blk.0.attn_qkv.weight"], found["token_embd.weight"]) == kinds
    import_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype=torch.float32)
    tokens = torch.arange(20)[None]
    expected = load_checkpoint(tmp_path / "few")(tokens)
    torch.testing.assert_close(load_checkpoint(tmp_path / "back")(tokens), expected, atol=worst, rtol=0)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_mixed_plan_keeps_its_eight_bits(merging_tokenizer: Tokenizer, tmp_path: Path, qk_norm: bool) -> None:
    config = ModelConfig(
        vocab_size=260, model_dim=64, head_dim=16, query_heads=(4, 4), kv_heads=(2, 2), ffn_dims=(64, 64),
        max_context=64, qk_norm=qk_norm,
    )  # fmt: skip
    make_tree(tmp_path, config, merging_tokenizer)
    model = load_checkpoint(tmp_path / "base")
    sensitive = {"layers.0.attention.v_proj.weight", "layers.1.ffn.down_proj.weight"}
    quantize_model(model, raised(uniform_plan(config, bits=4, scale_bits=8, embedding_bits=8), sensitive))
    save_quantized(tmp_path / "few", model, merging_tokenizer)
    export_gguf(tmp_path / "few", tmp_path / "x.gguf", quantization="q4_0")
    found = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    fused = "blk.0.attn_qkv.weight" if qk_norm else "blk.0.attn_v.weight"
    assert (found[fused], found["blk.1.ffn_down.weight"], found["blk.1.ffn_up.weight"]) == ("Q8_0", "Q8_0", "Q4_1")
    import_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype=torch.float32)
    tokens = torch.arange(20)[None]
    expected, got = (load_checkpoint(tmp_path / folder)(tokens) for folder in ("few", "back"))
    # float16's scales of int8, and 8 bits for what four neighbours of the fused matrix had in 4.
    assert (got - expected).norm() / expected.norm() < 0.02


LIGHT = """
import sys, types
from pathlib import Path
package = types.ModuleType("model")
package.__path__ = [sys.argv[1]]
sys.modules["model"] = package
from model.export import export_gguf
export_gguf(Path(sys.argv[2]), Path(sys.argv[3]))
print(sorted({"torch", "tokenizers", "transformers"} & set(sys.modules)))
"""


def test_a_device_writes_its_file_without_torch(
    config: ModelConfig, merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    import model

    make_tree(tmp_path, config, merging_tokenizer)
    command = [sys.executable, "-c", LIGHT, str(Path(model.__file__).parent), str(tmp_path), str(tmp_path / "x.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
