import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model import (
    CheckpointError,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    Tokenizer,
    adapter_shapes,
    add_lora,
    load_adapter,
    load_adapter_state,
    load_checkpoint,
    load_version,
    merge_lora,
    quantize_model,
    save_adapter,
    save_checkpoint,
    save_quantized,
    uniform_plan,
)
from model.quantization import plan_of, quantized_layers

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
LORA = LoRAConfig(rank=2, alpha=4)
UP = "layers.0.ffn.up_proj.weight"


@pytest.fixture
def quantized(request, tiny_model: LayeredTransformer, config: ModelConfig) -> LayeredTransformer:
    keep = {"layers.1.ffn.up_proj.weight"}
    scale_bits = getattr(request, "param", 16)
    plan = uniform_plan(config, bits=4, group_size=8, scale_bits=scale_bits, embedding_bits=8, keep=keep)
    quantize_model(tiny_model, plan)
    return tiny_model


@pytest.fixture
def folder(quantized: LayeredTransformer, byte_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_quantized(tmp_path / "tree" / "base", quantized, byte_tokenizer, dtype=torch.float32)
    return tmp_path / "tree" / "base"


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    merged = {**safetensors.torch.load_file(path), **tensors}
    safetensors.torch.save_file({name: t for name, t in merged.items() if t is not None}, path)


def random_state(config: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator).half() for n, s in adapter_shapes(config, LORA).items()}


BOTH_SCALES = pytest.mark.parametrize("quantized", [16, 8], indirect=True)


@BOTH_SCALES
@torch.no_grad()
def test_a_quantised_model_survives_its_files(
    quantized: LayeredTransformer, folder: Path, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    loaded = load_checkpoint(folder)
    assert torch.equal(loaded(TOKENS), quantized(TOKENS))
    assert plan_of(loaded) == plan_of(quantized)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())

    save_quantized(tmp_path / "again", loaded, byte_tokenizer, dtype=torch.float32)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "quantization.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@BOTH_SCALES
@torch.no_grad()
def test_computing_in_bfloat16(folder: Path, quantized: LayeredTransformer) -> None:
    loaded = load_checkpoint(folder, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    logits = loaded(TOKENS)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), quantized(TOKENS), atol=0.2, rtol=0.1)

    exact = quantized(TOKENS)
    stored = {name: buffer.dtype for name, buffer in quantized.named_buffers() if "rotary" not in name}
    converted = quantized.bfloat16()(TOKENS)
    assert converted.dtype == torch.bfloat16
    torch.testing.assert_close(converted.float(), exact, atol=0.2, rtol=0.1)
    assert {name: buffer.dtype for name, buffer in quantized.named_buffers() if "rotary" not in name} == stored
    torch.testing.assert_close(quantized.float()(TOKENS), exact, atol=0.2, rtol=0.1)  # the norms went through bfloat16


@torch.no_grad()
def test_saved_dense_it_is_an_ordinary_checkpoint(
    quantized: LayeredTransformer, byte_tokenizer: Tokenizer, folder: Path
) -> None:
    save_checkpoint(folder, quantized, byte_tokenizer, dtype=torch.float32)
    assert not (folder / "quantization.json").exists()
    dense = load_checkpoint(folder)
    assert not list(quantized_layers(dense))
    torch.testing.assert_close(dense(TOKENS), quantized(TOKENS), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_version_on_a_quantised_base(config: ModelConfig, folder: Path) -> None:
    state = random_state(config)
    save_adapter(folder.parent / "adapter", state, LORA)
    alone, both = load_version(folder.parent, with_adapter=False), load_version(folder.parent)
    assert (both.model(TOKENS) - alone.model(TOKENS)).abs().max() > 1e-2
    read, _ = load_adapter(folder.parent / "adapter")
    assert all(torch.equal(read[name], state[name]) for name in state)


@BOTH_SCALES
@torch.no_grad()
def test_an_adapter_is_left_out_or_merged_into_dense_weights(
    quantized: LayeredTransformer, config: ModelConfig, byte_tokenizer: Tokenizer, folder: Path, tmp_path: Path
) -> None:
    before = quantized(TOKENS)
    add_lora(quantized, LORA)
    load_adapter_state(quantized, random_state(config))
    save_quantized(tmp_path / "plain", quantized, byte_tokenizer, dtype=torch.float32)
    assert torch.equal(load_checkpoint(tmp_path / "plain")(TOKENS), before)

    with_adapter = quantized(TOKENS)
    merge_lora(quantized)
    with pytest.raises(CheckpointError, match=r"merged into layers\.0\.attention\.q_proj\.weight"):
        save_quantized(tmp_path / "no", quantized, byte_tokenizer)
    save_checkpoint(tmp_path / "merged", quantized, byte_tokenizer, dtype=torch.float32)
    torch.testing.assert_close(load_checkpoint(tmp_path / "merged")(TOKENS), with_adapter, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{UP}.scales": None}, r"missing layers\.0\.ffn\.up_proj\.weight\.scales"),
        ({f"{UP}.zeros": None}, r"missing layers\.0\.ffn\.up_proj\.weight\.zeros"),
        (
            {f"{UP}.values": torch.zeros(32, 24, dtype=torch.uint8)},
            r"layers\.0\.ffn\.up_proj\.weight\.values has shape",
        ),
        ({f"{UP}.values": torch.zeros(32, 12, dtype=torch.int8)}, r"layers\.0\.ffn\.up_proj\.weight\.values is I8"),
        ({f"{UP}.scales": torch.zeros(32, 3)}, r"layers\.0\.ffn\.up_proj\.weight\.scales is F32, its place needs F16"),
        (
            {f"{UP}.zeros": torch.full((32, 3), torch.inf).half()},
            r"layers\.0\.ffn\.up_proj\.weight\.zeros is not finite",
        ),
        ({"norm.weight": torch.ones(24, dtype=torch.int8)}, r"norm\.weight is I8, its place needs a floating"),
        ({UP: torch.zeros(32, 24)}, r"unexpected layers\.0\.ffn\.up_proj\.weight;"),
    ],
)
def test_damaged_weights_are_named(folder: Path, tensors: dict[str, torch.Tensor | None], said: str) -> None:
    change(folder, **tensors)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(folder)


@pytest.mark.parametrize("quantized", [8], indirect=True)
@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{UP}.tops": None}, r"missing layers\.0\.ffn\.up_proj\.weight\.tops"),
        ({f"{UP}.tops": torch.full((32, 2), torch.nan).half()}, r"up_proj\.weight\.tops is not finite"),
        ({f"{UP}.zeros": torch.zeros(32, 3, dtype=torch.uint8)}, r"zeros is U8, its place needs I8"),
    ],
)
def test_damaged_codes_are_named(folder: Path, tensors: dict[str, torch.Tensor | None], said: str) -> None:
    change(folder, **tensors)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(folder)


def test_integers_need_a_plan(folder: Path) -> None:
    (folder / "quantization.json").unlink()
    with pytest.raises(CheckpointError, match="does not fit its config"):
        load_checkpoint(folder)


def test_a_damaged_plan_is_named(folder: Path) -> None:
    path = folder / "quantization.json"
    plan = json.loads(path.read_text())
    plan["tensors"][UP]["group_size"] = 32
    path.write_text(json.dumps(plan))
    with pytest.raises(CheckpointError, match=r"layers\.0\.ffn\.up_proj\.weight: groups of 32"):
        load_checkpoint(folder)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"quantization\.json is not of the format"):
        load_checkpoint(folder)
