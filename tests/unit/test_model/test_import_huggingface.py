import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model import CheckpointError, ForeignModelError, Tokenizer, import_huggingface, load_checkpoint, load_version

TOKENS = torch.randint(0, 260, (2, 33), generator=torch.Generator().manual_seed(0))


def make_llama(folder: Path, tokenizer: Tokenizer, **settings: object) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(shape | settings))).eval()
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model


@pytest.fixture
def folder(tmp_path: Path, byte_tokenizer: Tokenizer) -> Path:
    make_llama(tmp_path / "hf", byte_tokenizer)
    return tmp_path / "hf"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True},
        {"head_dim": 12, "num_key_value_heads": 1, "rope_theta": 1234.5, "rms_norm_eps": 1e-3},
    ],
)
@torch.no_grad()
def test_logits_equal_transformers(tmp_path: Path, byte_tokenizer: Tokenizer, settings: dict[str, object]) -> None:
    theirs = make_llama(tmp_path / "hf", byte_tokenizer, **settings)
    config = import_huggingface(tmp_path / "hf", tmp_path / "ours", dtype=torch.float32)
    ours = load_checkpoint(tmp_path / "ours")

    assert ours.config == config
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_shards_are_read_through_their_index(folder: Path, tmp_path: Path) -> None:
    import_huggingface(folder, tmp_path / "whole")
    split(folder)
    import_huggingface(folder, tmp_path / "sharded")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "sharded")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_file_is_the_one_that_the_library_writes(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    import_huggingface(folder, tmp_path / "ours", dtype=dtype)
    tensors = {name: t.detach() for name, t in load_checkpoint(tmp_path / "ours", dtype=dtype).state_dict().items()}
    expected = safetensors.torch.save(tensors, {"format": "pt"})
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == expected


def test_a_broken_shard_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    """Nor does it touch what lies where the import was to go."""
    import_huggingface(folder, tmp_path / "old")
    before = {file: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    split(folder)
    shard = folder / "model-1.safetensors"
    sound = shard.read_bytes()
    tensors = safetensors.torch.load(sound)
    tensors["model.norm.weight"][3] = torch.nan
    for broken, message in (
        (sound[:-40], r"model-1.safetensors .* cut short"),
        (safetensors.torch.save(tensors), "norm.weight has values that are not finite"),
    ):
        shard.write_bytes(broken)
        for out in ("new", "old"):
            with pytest.raises(CheckpointError, match=message):
                import_huggingface(folder, tmp_path / out)
        assert not (tmp_path / "new").exists()
        assert {file: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*model-1"):
        import_huggingface(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def split(folder: Path) -> Path:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[:5], sorted(tensors)[5:])):
        shard = f"model-{number}.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("shard", ["../model-0.safetensors", "/etc/passwd", ".hidden"])
def test_an_index_cannot_lead_out_of_its_folder(folder: Path, tmp_path: Path, shard: str) -> None:
    index = split(folder)
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], shard)
    index.write_text(json.dumps(content))
    with pytest.raises(ForeignModelError, match="outside its folder"):
        import_huggingface(folder, tmp_path / "ours")


def test_an_index_that_lies_is_refused(folder: Path, tmp_path: Path) -> None:
    index = split(folder)
    content = json.loads(index.read_text())
    content["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(content))
    with pytest.raises(ForeignModelError, match="does not describe"):
        import_huggingface(folder, tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}}, "llama3"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part of each head"),
        ({"num_attention_heads": 0}, "0"),
        ({"num_key_value_heads": 3}, "no multiple of 3"),
        ({"intermediate_size": 47}, "shape"),
        ({"hidden_size": "wide"}, "model_dim .* 'wide'"),
        ({"num_hidden_layers": 10**12}, "number of layers"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"tie_word_embeddings": True}, "tied"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ForeignModelError, match=message):
        import_huggingface(folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"lacks 1 tensors, such as \['model\.norm\.weight'\]"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}), r"q_proj\.bias"),
        (lambda t: t.update({"model.norm.weight": torch.ones(31)}), r"shape \[31\]"),
    ],
)
def test_tensors_must_be_exactly_a_llamas(
    folder: Path, tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ForeignModelError, match=message):
        import_huggingface(folder, tmp_path / "ours")


def test_pickles_are_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ForeignModelError, match="neither"):
        import_huggingface(folder, tmp_path / "ours")
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ForeignModelError, match="can run code"):
        import_huggingface(folder, tmp_path / "ours")


def test_a_folder_without_a_fast_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ForeignModelError, match="use_fast=True"):
        import_huggingface(folder, tmp_path / "ours")


def test_a_folder_is_not_overwritten_by_its_own_import(folder: Path) -> None:
    with pytest.raises(ForeignModelError, match="another folder"):
        import_huggingface(folder, folder)


@pytest.mark.parametrize("where", ["file", "list"])
def test_the_chat_template_is_found_where_transformers_puts_it(folder: Path, tmp_path: Path, where: str) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    template = "{{ messages[0]['content'] }}!"
    if where == "file":
        (folder / "chat_template.jinja").write_text(template)
    else:
        settings["chat_template"] = [{"name": "tool", "template": "?"}, {"name": "default", "template": template}]
    path.write_text(json.dumps(settings))
    import_huggingface(folder, tmp_path / "tree" / "base")
    tokenizer = load_version(tmp_path / "tree").tokenizer
    assert tokenizer.apply_chat([{"role": "user", "content": "hi"}], add_generation_prompt=True) == "hi!"
