"""However few rows are taken at a time, what is written is what the whole model in memory would have given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from simulators.exchange import add_adapter, byte_pair_tokenizer, make_tree

from model import (
    CheckpointError,
    ModelConfig,
    import_gguf,
    import_huggingface,
    load_checkpoint,
    load_version,
    quantize_model,
    save_checkpoint,
    save_quantized,
    uniform_plan,
)
from model.errors import QuantizationError
from model.export import export_gguf, export_hf
from model.export.dense import load_dense, write_dense
from model.probe import probe_logits
from model.quantization.stream import quantize_stored
from model.stored_model import stored_version

PLAN = ModelConfig(
    vocab_size=262,
    model_dim=64,
    head_dim=16,
    query_heads=(8, 4),
    kv_heads=(4, 2),
    ffn_dims=(96, 64),
    max_context=32,
    qk_norm=True,
    norm_eps=1e-6,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree", PLAN, byte_pair_tokenizer())
    return tmp_path / "tree"


@pytest.fixture(params=[64, 200, 1 << 20])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row at a time, three rows, whole tensors."""
    monkeypatch.setattr("model.tensor_file._STEP_NUMBERS", request.param)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.usefixtures("step")
@pytest.mark.parametrize(
    ("export", "bring_back"),
    [
        (lambda tree, out: export_gguf(tree, out, quantization="f32"), import_gguf),
        (lambda tree, out: export_hf(tree, out, dtype="float32"), import_huggingface),
    ],
    ids=["gguf", "huggingface"],
)
def test_an_import_gives_back_what_was_exported(
    tree: Path, tmp_path: Path, export: Callable[[Path, Path], str], bring_back: Callable[..., ModelConfig]
) -> None:
    """Rows that the format interleaves, and several matrices in one, included."""
    export(tree, tmp_path / "foreign.gguf")
    bring_back(tmp_path / "foreign.gguf", tmp_path / "back", dtype=torch.float32)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tree / "base" / name).read_bytes()


@pytest.mark.usefixtures("step")
@pytest.mark.parametrize(
    "options",
    [{"bits": 8}, {"bits": 4, "symmetric": True}, {"bits": 4, "scale_bits": 8, "embedding_bits": 16}],
    ids=["int8", "symmetric", "coded"],
)
def test_quantising_on_the_way_through(tree: Path, tmp_path: Path, options: dict[str, int]) -> None:
    plan = uniform_plan(PLAN, **options)
    seen: list[str] = []
    quantize_stored(tree / "base", tmp_path / "streamed", plan, on_tensor=seen.append)
    model = load_checkpoint(tree / "base")
    quantize_model(model, plan)
    save_quantized(tmp_path / "whole", model, byte_pair_tokenizer())
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "whole")
    assert sorted(seen) == sorted(plan.tensors)


def test_a_merged_adapter(tree: Path, tmp_path: Path) -> None:
    add_adapter(tree, PLAN)
    write_dense(tree, tmp_path / "streamed")
    save_checkpoint(tmp_path / "whole", *load_dense(tree), dtype=torch.float32)
    assert files_of(tmp_path / "streamed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("name", ["layers.1.ffn.up_proj.weight", "norm.weight"])
def test_what_cannot_be_quantised_leaves_nothing(tree: Path, tmp_path: Path, name: str) -> None:
    out, path = tmp_path / "out", tree / "base" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors[name][-1] = torch.nan
    safetensors.torch.save_file(tensors, tmp_path / "damaged", {"format": "pt"})
    sound = path.read_bytes()
    path.write_bytes((tmp_path / "damaged").read_bytes())
    with pytest.raises((QuantizationError, CheckpointError), match=f"{name}.* not finite"):
        quantize_stored(tree / "base", out, uniform_plan(PLAN, bits=4))
    assert not out.exists()
    path.write_bytes(sound)
    quantize_stored(tree / "base", out, uniform_plan(PLAN, bits=8))
    with pytest.raises(QuantizationError, match="quantised already"):
        quantize_stored(out, tmp_path / "again", uniform_plan(PLAN, bits=4))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "change",
    [{}, {"tied_embeddings": False}, {"query_heads": (4, 4), "kv_heads": (2, 2), "kv_of": (0, 0)}, {"bits": 8}],
    ids=["tied", "untied", "shared", "quantised"],
)
def test_a_version_that_stays_on_the_disk_computes_the_same(tmp_path: Path, change: dict[str, object]) -> None:
    """Bit for bit: what it computes is signed, and compared on devices."""
    plan = replace(PLAN, **{key: value for key, value in change.items() if key != "bits"})
    make_tree(tmp_path, plan, byte_pair_tokenizer(), dtype=torch.float16)
    if "bits" in change:
        (tmp_path / "base").rename(tmp_path / "plain")
        quantize_stored(tmp_path / "plain", tmp_path / "base", uniform_plan(plan, bits=8))
    with stored_version(tmp_path) as stored:
        assert torch.equal(probe_logits(stored), probe_logits(load_version(tmp_path)))


def test_a_base_without_its_weights_is_refused(tree: Path) -> None:
    (tree / "base" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no sound safetensors file"), stored_version(tree):
        pass
