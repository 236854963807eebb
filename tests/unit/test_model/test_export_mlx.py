"""The bits of MLX's form, undone by hand; mlx-lm itself is asked in the integration tests."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from simulators.exchange import make_tree

from model import ModelConfig, Tokenizer
from model.errors import ExportError
from model.export import export_mlx

CONFIG = ModelConfig(
    vocab_size=260,
    model_dim=64,
    head_dim=16,
    query_heads=(4, 2),
    kv_heads=(2, 1),
    ffn_dims=(64, 48),
    max_context=64,
    qk_norm=True,
)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint32 (rows, n) -> (rows, n * 32 / bits): the first number in the lowest bits."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).reshape(len(packed), -1)


def meaning(tensors: dict[str, np.ndarray], path: str, bits: int) -> np.ndarray:
    values, scales, biases = (tensors[f"{path}.{part}"] for part in ("weight", "scales", "biases"))
    grouped = unpacked(values, bits).reshape(*scales.shape, -1).astype(np.float32)
    return (grouped * scales[..., None] + biases[..., None]).reshape(len(values), -1)


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_mean_the_weights(byte_tokenizer: Tokenizer, tmp_path: Path, bits: int) -> None:
    model = make_tree(tmp_path, CONFIG, byte_tokenizer)
    export_mlx(tmp_path, tmp_path / "mlx", bits=bits, group_size=32, embedding_bits=bits, dtype="float32")
    tensors = load_file(tmp_path / "mlx" / "model.safetensors")
    for path, weight in {
        "transformer.token_embeddings": model.embedding.weight,
        "transformer.layers.0.ffn.proj_2": model.layers[0].ffn.down_proj.weight,
    }.items():
        wanted = weight.detach().numpy()
        groups = wanted.reshape(len(wanted), -1, 32)
        steps = (groups.max(-1) - groups.min(-1)) / (2**bits - 1)
        difference = np.abs(meaning(tensors, path, bits) - wanted).reshape(groups.shape)
        assert (difference <= 0.51 * steps[..., None]).all()
    assert tensors["transformer.norm.weight"].dtype == np.float32
    # Rows of 48 numbers are no groups of 32: they stay floats.
    assert tensors["transformer.layers.1.ffn.proj_2.weight"].dtype == np.float32
    content = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert content["quantization"] == {"group_size": 32, "bits": bits}


def test_without_bits_it_is_a_plain_folder(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_tree(tmp_path, CONFIG, byte_tokenizer)
    assert export_mlx(tmp_path, tmp_path / "mlx") == "openelm"
    tensors = load_file(tmp_path / "mlx" / "model.safetensors")
    expected = torch.cat([model.layers[1].ffn.gate_proj.weight, model.layers[1].ffn.up_proj.weight]).half()
    np.testing.assert_array_equal(tensors["transformer.layers.1.ffn.proj_1.weight"], expected.detach().numpy())
    content = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert "quantization" not in content
    assert content["rms_norm_eps"] == 1e-5  # mlx-lm computes with it, unlike OpenELM's own class


def test_four_bits_leave_the_embedding_eight(byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    make_tree(tmp_path, CONFIG, byte_tokenizer)
    export_mlx(tmp_path, tmp_path / "mlx", bits=4)
    content = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert content["quantization"]["transformer.token_embeddings"] == {"group_size": 32, "bits": 8}
    assert load_file(tmp_path / "mlx" / "model.safetensors")["transformer.token_embeddings.weight"].shape == (260, 16)


@pytest.mark.parametrize("settings", [{"bits": 5}, {"group_size": 48}, {"dtype": "int8"}])
def test_what_mlx_does_not_take_is_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(ExportError, match="mlx-lm takes"):
        export_mlx(tmp_path, tmp_path / "mlx", **settings)


@pytest.mark.parametrize(
    ("kind", "bits"), [("int8", 8), ("int8", 4), ("int4", 4), ("int4-symmetric", 4), ("int4-coded", 4)]
)
def test_whole_numbers_are_kept(byte_tokenizer: Tokenizer, tmp_path: Path, kind: str, bits: int) -> None:
    from model.quantization import dequantize, quantize_int4, quantize_int8
    from model.quantization.weights import to_stored
    from model.tensor_file import TensorFile, write_tensors

    model = make_tree(tmp_path, CONFIG, byte_tokenizer)
    path, name = tmp_path / "base" / "model.safetensors", "layers.0.ffn.down_proj.weight"
    weight = model.layers[0].ffn.down_proj.weight
    if kind == "int8":
        few = quantize_int8(weight)
    else:
        few = quantize_int4(weight, 32, symmetric="symmetric" in kind, scale_bits=8 if "coded" in kind else 16)
    with TensorFile(path) as file:
        tensors = {key: file.read(key) for key in file.tensors if key != name}
    tensors |= {f"{name}.{part}": tensor for part, tensor in to_stored(few).items()}
    write_tensors(path, tensors, metadata={})
    export_mlx(tmp_path, tmp_path / "mlx", bits=bits, dtype="float32")
    # A weight that got 8 bits keeps them among others of 4, and the config says so.
    told = json.loads((tmp_path / "mlx" / "config.json").read_text())["quantization"]
    own = told.get("transformer.layers.0.ffn.proj_2", told)["bits"]
    assert own == (8 if kind == "int8" else 4)
    got = meaning(load_file(tmp_path / "mlx" / "model.safetensors"), "transformer.layers.0.ffn.proj_2", own)
    np.testing.assert_allclose(got, dequantize(few).numpy(), atol=1e-6)


RUNS_OF_TWO = (0, 0, 2, 2)


@pytest.mark.parametrize(
    ("change", "run"),
    [
        ({}, 2),
        ({"kv_of": (0, 0, 0, 0)}, 4),
        ({"kv_of": (0, 0, 0, 3)}, 3),
        ({"weights_of": (0, 1, 0, 1)}, 2),
        ({"kv_of": ()}, None),
        ({"kv_of": (0, 0, 2, 3)}, None),
        ({"kv_of": (0, 1, 1, 1)}, None),
        ({"kv_of": (0, 0, 2, 0)}, None),
        ({"ffn_dims": (32, 32, 32, 16)}, None),
        ({"qk_norm": True}, None),
        ({"tied_embeddings": False}, None),
        ({"head_dim": 4}, None),
    ],
)
def test_what_mlx_can_say_of_shared_keys_and_values(
    byte_tokenizer: Tokenizer, tmp_path: Path, change: dict[str, object], run: int | None
) -> None:
    plan = {
        "vocab_size": 260, "model_dim": 32, "head_dim": 8, "query_heads": (4,) * 4, "kv_heads": (2,) * 4,
        "ffn_dims": (32,) * 4, "max_context": 64, "kv_of": RUNS_OF_TWO,
    }  # fmt: skip
    config = ModelConfig(**(plan | change))
    make_tree(tmp_path, config, byte_tokenizer)
    if run is None and config.kv_of:
        with pytest.raises(ExportError, match="attend over keys and values of earlier layers"):
            export_mlx(tmp_path, tmp_path / "mlx")
        assert not (tmp_path / "mlx").exists()
        return
    export_mlx(tmp_path, tmp_path / "mlx")
    written = json.loads((tmp_path / "mlx" / "config.json").read_text())
    assert written.get("cla_share_factor") == run
    stored = load_file(tmp_path / "mlx" / "model.safetensors")
    owners = {name.split(".")[2] for name in stored if "k_proj" in name}
    assert owners == {str(layer) for layer in range(4) if config.kv_layer(layer) == layer}
