import dataclasses
from pathlib import Path

import pytest
import torch

from model import (
    AdapterError,
    CheckpointError,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    Tokenizer,
    adapter_shapes,
    add_lora,
    load_adapter_state,
    load_checkpoint,
    load_version,
    merge_lora,
    save_adapter,
    save_checkpoint,
)
from model.checkpoint import write_checkpoint

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
LORA = LoRAConfig(rank=2, alpha=4)


@pytest.fixture
def tree(tiny_model: LayeredTransformer, byte_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "tree" / "base", tiny_model, byte_tokenizer)
    return tmp_path / "tree"


def random_state(config: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator).half() for n, s in adapter_shapes(config, LORA).items()}


@torch.no_grad()
def test_round_trip(tiny_model: LayeredTransformer, tree: Path) -> None:
    loaded = load_checkpoint(tree / "base")
    for name, parameter in tiny_model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter.half().float())
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert load_checkpoint(tree / "base", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_same_model_gives_the_same_bytes(
    tiny_model: LayeredTransformer, byte_tokenizer: Tokenizer, tree: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "again", tiny_model, byte_tokenizer)
    for path in (tree / "base").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert sorted(p.name for p in (tree / "base").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


@torch.no_grad()
def test_a_version_is_its_base_with_its_adapter(config: ModelConfig, tree: Path) -> None:
    alone = load_version(tree)
    assert not alone.has_adapter

    state = random_state(config)
    save_adapter(tree / "adapter", state, LORA)
    both = load_version(tree)
    assert both.has_adapter
    assert (both.model(TOKENS) - alone.model(TOKENS)).abs().max() > 1e-2

    without = load_version(tree, with_adapter=False)
    assert not without.has_adapter
    assert torch.equal(without.model(TOKENS), alone.model(TOKENS))

    add_lora(without.model, LORA)
    load_adapter_state(without.model, state)
    assert torch.equal(without.model(TOKENS), both.model(TOKENS))


@torch.no_grad()
def test_saving_leaves_an_adapter_out_and_keeps_a_merged_one(
    tiny_model: LayeredTransformer, config: ModelConfig, byte_tokenizer: Tokenizer, tree: Path, tmp_path: Path
) -> None:
    add_lora(tiny_model, LORA)
    load_adapter_state(tiny_model, random_state(config))
    save_checkpoint(tmp_path / "plain", tiny_model, byte_tokenizer)
    sound = (tree / "base" / "model.safetensors").read_bytes()
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() == sound

    merge_lora(tiny_model)
    save_checkpoint(tmp_path / "merged", tiny_model, byte_tokenizer, dtype=torch.float32)
    merged = load_checkpoint(tmp_path / "merged")
    torch.testing.assert_close(merged(TOKENS), tiny_model(TOKENS))


def test_an_adapter_for_another_base_is_refused(config: ModelConfig, tree: Path) -> None:
    other = dataclasses.replace(config, query_heads=(2, 2, 2))
    save_adapter(tree / "adapter", random_state(other), LORA)
    with pytest.raises(AdapterError, match="this base"):
        load_version(tree)


def test_weights_of_another_config_are_refused(config: ModelConfig, tree: Path) -> None:
    path = tree / "base" / "config.json"
    path.write_text(dataclasses.replace(config, ffn_dims=(32, 24, 17)).to_json())
    with pytest.raises(CheckpointError, match=r"layers\.2\.ffn"):
        load_checkpoint(tree / "base")
    path.write_text(dataclasses.replace(config, qk_norm=False).to_json())
    with pytest.raises(CheckpointError, match="unexpected"):
        load_checkpoint(tree / "base")
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(tree / "base")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(tree: Path, name: str) -> None:
    (tree / "base" / name).unlink()
    with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
        load_version(tree)


def test_nothing_is_written_that_could_not_be_used(
    tiny_model: LayeredTransformer, config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    small = dataclasses.replace(config, vocab_size=10)
    with pytest.raises(CheckpointError, match="259 tokens"):
        write_checkpoint(tmp_path / "x", small, {}, byte_tokenizer)
    with torch.no_grad():
        tiny_model.norm.weight[0] = 1e6
    with pytest.raises(CheckpointError, match=r"norm\.weight .* bfloat16"):
        save_checkpoint(tmp_path / "x", tiny_model, byte_tokenizer)
    assert not (tmp_path / "x").exists()
