import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from simulators.exchange import byte_pair_tokenizer, make_tree

from delta_updates import apply_package, build_package
from delta_updates.codecs import CodecName, ElementKind
from delta_updates.package import PackageReader
from model import (
    PROJECTIONS,
    AdapterError,
    LoRAConfig,
    ModelConfig,
    QuantizedAdapter,
    adapter_shapes,
    load_adapter,
    load_quantized_adapter,
    load_version,
    merge_lora,
    save_adapter,
    save_quantized_adapter,
    unmerge_lora,
)
from model.adapter_format import QuantizedFormat
from model.export import export_gguf_adapter, export_peft
from model.export.adapters import read_adapter
from model.inference import Engine, PackedDecoder
from model.inspection import inspect_model

LORA = LoRAConfig(rank=4, alpha=6, targets=PROJECTIONS)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMS = pytest.mark.parametrize("form", ["int8", "int4"])


def random_state(config: ModelConfig, seed: int = 0, stddev: float = 0.1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (stddev * rng.normal(size=shape)).astype(np.float32)
        for name, shape in adapter_shapes(config, LORA).items()
    }


@pytest.fixture
def tree(config: ModelConfig, tmp_path: Path) -> Path:
    """A base without an adapter."""
    make_tree(tmp_path / "tree", config, byte_pair_tokenizer())
    return tmp_path / "tree"


def write(folder: Path, state: dict[str, np.ndarray], form: QuantizedFormat) -> QuantizedAdapter:
    adapter = QuantizedAdapter.of(state, form)
    save_quantized_adapter(folder, adapter, LORA)
    return adapter


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype == np.float32
        np.testing.assert_array_equal(values.view(np.uint32), other[name].view(np.uint32), err_msg=name)


@FORMS
def test_every_reader_has_the_same_bits(form: QuantizedFormat, config: ModelConfig, tree: Path) -> None:
    adapter = write(tree / "adapter", random_state(config), form)
    expected = adapter.floats()
    assert {name: values.shape for name, values in expected.items()} == adapter_shapes(config, LORA)
    state, lora = load_adapter(tree / "adapter")
    assert lora == LORA
    assert_same_bits({name: tensor.numpy() for name, tensor in state.items()}, expected)
    assert_same_bits(read_adapter(tree / "adapter", config)[1], expected)
    again = load_quantized_adapter(tree / "adapter")
    assert again is not None
    assert again.form == form
    assert_same_bits(again.floats(), expected)
    # And rounding it again with its own scales changes nothing at all.
    save_quantized_adapter(tree / "again", QuantizedAdapter.of(expected, form, previous=again), LORA)
    for file in (CONFIG, WEIGHTS):
        assert (tree / "again" / file).read_bytes() == (tree / "adapter" / file).read_bytes()


@FORMS
def test_it_takes_so_many_bits(form: QuantizedFormat, config: ModelConfig, tree: Path) -> None:
    adapter = write(tree / "adapter", random_state(config), form)
    numbers = sum(factor.codes.size for factor in adapter.factors.values())
    scales = sum(factor.scales.size for factor in adapter.factors.values())
    stored = safetensors.numpy.load_file(tree / "adapter" / WEIGHTS)
    assert sum(values.nbytes for values in stored.values()) == numbers * int(form[3:]) // 8 + 4 * scales
    facts = inspect_model(tree).adapter
    assert facts is not None
    assert (facts.form, facts.parameters) == (form, numbers)
    assert facts.num_bytes == numbers * int(form[3:]) // 8 + 4 * scales


def test_scales_of_another_format_are_not_kept(config: ModelConfig) -> None:
    state = random_state(config)
    coarse = QuantizedAdapter.of(state, "int4")
    fine = QuantizedAdapter.of(state, "int8", previous=coarse)
    assert_same_bits(fine.floats(), QuantizedAdapter.of(state, "int8").floats())


@torch.no_grad()
@FORMS
def test_a_version_with_it_computes_what_its_floats_compute(
    form: QuantizedFormat, config: ModelConfig, tree: Path
) -> None:
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    adapter = write(tree / "adapter", random_state(config, stddev=0.3), form)
    ours = load_version(tree).model
    quantised = ours(tokens)
    base = load_version(tree, with_adapter=False).model(tokens)
    assert (quantised - base).abs().max() > 1e-2
    merge_lora(ours)
    torch.testing.assert_close(ours(tokens), quantised, atol=1e-4, rtol=0)
    unmerge_lora(ours)
    torch.testing.assert_close(ours(tokens), quantised, atol=0, rtol=0)
    floats = {name: torch.from_numpy(values) for name, values in adapter.floats().items()}
    save_adapter(tree / "floats", floats, LORA, dtype=torch.float32)
    (tree / "adapter").rename(tree / "quantised")
    (tree / "floats").rename(tree / "adapter")
    torch.testing.assert_close(load_version(tree).model(tokens), quantised, atol=0, rtol=0)
    # Files for llama.cpp and for PEFT are those of the floats, byte for byte.
    for folder in ("quantised", "adapter"):
        export_gguf_adapter(tree / folder, tree / f"{folder}.gguf", base=tree / "base")
        export_peft(tree / folder, tree / f"{folder}-peft")
    assert (tree / "quantised.gguf").read_bytes() == (tree / "adapter.gguf").read_bytes()
    for file in (CONFIG, WEIGHTS):
        assert (tree / "quantised-peft" / file).read_bytes() == (tree / "adapter" / file).read_bytes()


@FORMS
def test_the_engine_puts_it_on(form: QuantizedFormat, config: ModelConfig, tree: Path) -> None:
    write(tree / "adapter", random_state(config, stddev=0.3), form)
    engine = Engine(PackedDecoder.from_folder(tree / "base", precision="float32"))
    engine.add_adapter("mine", tree / "adapter")
    assert engine.adapters == ("mine",)


@pytest.mark.slow
@FORMS
def test_peft_refuses_the_folder_and_loads_the_export(form: QuantizedFormat, config: ModelConfig, tree: Path) -> None:
    from peft import PeftConfig

    write(tree / "adapter", random_state(config), form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((KeyError, ValueError, TypeError), match="QUANTIZED_LORA"):
            PeftConfig.from_pretrained(str(tree / "adapter"))
    export_peft(tree / "adapter", tree / "peft")
    assert PeftConfig.from_pretrained(str(tree / "peft")).r == LORA.rank


@FORMS
def test_a_delta_knows_its_whole_numbers(form: QuantizedFormat, tmp_path: Path) -> None:
    shapes = {"layers.0.attention.q_proj.lora_a": (4, 4096), "layers.0.attention.q_proj.lora_b": (4096, 4)}
    rng = np.random.default_rng(0)
    state = {name: (0.02 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    first = write(tmp_path / "v1", state, form)
    moved = {
        name: values + np.float32(2e-4 if form == "int8" else 1e-3) * rng.normal(size=values.shape).astype(np.float32)
        for name, values in state.items()
    }
    save_quantized_adapter(tmp_path / "v2", QuantizedAdapter.of(moved, form, previous=first), LORA)
    built = build_package(tmp_path / "v1", tmp_path / "v2", tmp_path / "package")
    full = build_package(None, tmp_path / "v2", tmp_path / "full")
    assert built.package_bytes < 0.6 * full.package_bytes
    with PackageReader(tmp_path / "package") as reader:
        (weights,) = [file for file in reader.header.files if file.method == "tensors"]
        kinds = {record.kind for record in reader.records(weights) if record.codec is CodecName.DIFFERENCE}
    # All scales were kept.
    assert kinds == {ElementKind.INT8 if form == "int8" else ElementKind.NIBBLES}
    apply_package(tmp_path / "v1", tmp_path / "package", tmp_path / "out", expected_target_hash=built.target_hash)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "int3"}, r"format 'int3'.*int8 and int4.*update this program"),
        ({"format": 8}, "format 8"),
        ({"format": "x" * 5000}, r"^.{0,400}$"),
        ({"format_version": 2}, "version 2"),
        ({"format_version": None}, "version None"),
        ({"format": "int4"}, r"lora_a\.values is I8 .*int4 adapter of rank 4 has U8"),
        ({"peft_type": "LORA"}, "asks for .*format"),
        ({"bias": "all"}, "bias"),
        ({"r": 3}, "rank 3"),
        ({"use_dora": True}, "use_dora"),
    ],
)
def test_a_config_that_says_something_else_is_refused(
    config: ModelConfig, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    write(tmp_path, random_state(config), "int8")
    settings = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(settings | change))
    for read in (load_adapter, load_quantized_adapter, lambda folder: read_adapter(folder, config)):
        with pytest.raises(AdapterError, match=said):
            read(tmp_path)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def without(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: values for key, values in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: without(t, f"{FIRST}.scales"), r"q_proj\.lora_a is stored as \['values'\].*needs values and scales"),
        (lambda t: without(t, f"{FIRST}.values"), r"q_proj\.lora_a is stored as \['scales'\]"),
        (lambda t: t | {FIRST: t[f"{FIRST}.scales"]}, r"lora_A' is not the name"),
        (lambda t: t | {f"{FIRST}.zeros": t[f"{FIRST}.scales"]}, r"'zeros'"),
        (lambda t: t | {f"{FIRST}.scales": t[f"{FIRST}.scales"] * np.nan}, r"q_proj\.lora_a\.scales has a scale"),
        (lambda t: t | {f"{FIRST}.scales": -t[f"{FIRST}.scales"]}, r"zero or negative; take the adapter again"),
        (lambda t: t | {f"{FIRST}.scales": t[f"{FIRST}.scales"][:, None]}, r"lora_a\.scales is F32 of shape"),
        (lambda t: t | {f"{FIRST}.values": t[f"{FIRST}.values"].astype(np.float32)}, r"lora_a\.values is F32"),
        (lambda t: t | {f"{FIRST}.values": t[f"{FIRST}.values"][:-1]}, r"lora_a\.values is I8 of shape \[3, 24\]"),
    ],
)
def test_tensors_that_are_not_the_formats_are_named(
    config: ModelConfig, tree: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], said: str
) -> None:
    write(tree / "adapter", random_state(config), "int8")
    tensors = safetensors.numpy.load_file(tree / "adapter" / WEIGHTS)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(values) for name, values in change(tensors).items()}, tree / "adapter" / WEIGHTS
    )
    for read in (load_version, inspect_model, lambda folder: read_adapter(folder / "adapter", config)):
        with pytest.raises(AdapterError, match=said):
            read(tree)


def test_one_of_another_base_does_not_fit(config: ModelConfig, tree: Path) -> None:
    state = random_state(config)
    name = "layers.0.ffn.up_proj.lora_b"
    state[name] = state[name][:-2]
    write(tree / "adapter", state, "int8")
    for read in (load_version, inspect_model, lambda folder: read_adapter(folder / "adapter", config)):
        with pytest.raises(AdapterError, match="base"):
            read(tree)


def test_floats_are_not_a_quantised_adapter(config: ModelConfig, tmp_path: Path) -> None:
    state = {name: torch.from_numpy(values) for name, values in random_state(config).items()}
    save_adapter(tmp_path, state, LORA)
    assert load_quantized_adapter(tmp_path) is None
    with pytest.raises(AdapterError, match="cannot read"):
        load_quantized_adapter(tmp_path / "nowhere")
