"""What `inspect_model` tells of a folder, and what it says of one that is wrong."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import (
    AdapterError,
    CheckpointError,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    ModelError,
    Tokenizer,
    adapter_shapes,
    quantize_model,
    save_adapter,
    save_checkpoint,
    save_quantized,
    uniform_plan,
)
from model.inspection import inspect_model
from model.plans import with_repeated_layers
from model.raw_tensor_file import RawTensorFile

LORA = LoRAConfig(rank=2, alpha=4)


@pytest.fixture
def tree(tiny_model: LayeredTransformer, byte_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "tree" / "base", tiny_model, byte_tokenizer)
    return tmp_path / "tree"


def write_adapter(folder: Path, config: ModelConfig) -> None:
    save_adapter(folder, {name: torch.zeros(shape) for name, shape in adapter_shapes(config, LORA).items()}, LORA)


def no_reading(monkeypatch) -> None:
    def read(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(RawTensorFile, "read_bytes", read)


def test_a_checkpoint_is_told_without_reading_a_weight(config: ModelConfig, tree: Path, monkeypatch) -> None:
    no_reading(monkeypatch)
    facts = inspect_model(tree / "base")
    assert facts.config == config
    assert [part.name for part in facts.parts] == ["embedding", "attention", "feed-forward", "norms"]
    assert sum(part.parameters for part in facts.parts) == config.parameter_count
    assert facts.num_bytes == 2 * config.parameter_count
    assert facts.dtypes == {"F16": facts.num_bytes}
    assert facts.quantized == {}
    assert facts.adapter is None
    assert facts.tokenizer is not None
    assert facts.tokenizer.vocab_size == 259
    assert facts.tokenizer.stop_tokens == ("<|endoftext|>", "<|im_end|>")
    assert facts.tokenizer.has_chat_template


def test_a_tree_is_told_with_its_adapter(config: ModelConfig, tree: Path, monkeypatch) -> None:
    write_adapter(tree / "adapter", config)
    no_reading(monkeypatch)
    facts = inspect_model(tree)
    assert facts.adapter is not None
    assert facts.adapter.lora == LORA
    assert facts.adapter.parameters == sum(torch.Size(s).numel() for s in adapter_shapes(config, LORA).values())
    assert facts.adapter.num_bytes == 2 * facts.adapter.parameters
    assert facts.adapter.dtypes == ("F16",)


def test_shared_layers_count_once(config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    shared = with_repeated_layers(config, 2)
    save_checkpoint(tmp_path, LayeredTransformer(shared), byte_tokenizer)
    assert inspect_model(tmp_path).num_bytes == 2 * config.parameter_count


@pytest.mark.parametrize(("scale_bits", "said"), [(16, ""), (8, ", scales of 8 bits")])
def test_a_quantised_checkpoint_says_how(
    config: ModelConfig, tiny_model: LayeredTransformer, byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch,
    scale_bits: int, said: str,
) -> None:  # fmt: skip
    quantize_model(tiny_model, uniform_plan(config, bits=4, group_size=8, scale_bits=scale_bits, embedding_bits=8))
    save_quantized(tmp_path, tiny_model, byte_tokenizer)
    no_reading(monkeypatch)
    facts = inspect_model(tmp_path)
    assert facts.quantized["int8"] == 1
    assert facts.quantized[f"int4, groups of 8{said}"] == 21
    assert set(facts.dtypes) >= {"U8", "I8", "F16"}
    assert facts.num_bytes < 2 * config.parameter_count
    assert sum(part.parameters for part in facts.parts) == config.parameter_count


def test_a_checkpoint_without_a_tokenizer_is_one(tree: Path) -> None:
    (tree / "base" / "tokenizer.json").unlink()
    assert inspect_model(tree).tokenizer is None


def edit_json(name: str, edit: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_text(json.dumps(edit(json.loads((tree / name).read_text()))))


def edit_tensors(name: str, edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        tensors = safetensors.torch.load_file(tree / name)
        edit(tensors)
        safetensors.torch.save_file(tensors, tree / name)

    return change


def edit_header(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def change(tree: Path) -> None:
        path = tree / "base/model.safetensors"
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        edit(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    return change


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_bytes(content)


def cut(tree: Path) -> None:
    path = tree / "base/model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


WEIGHTS, ADAPTER = "base/model.safetensors", "adapter/adapter_model.safetensors"
Q_PROJ = "layers.1.attention.q_proj.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_tensors(WEIGHTS, lambda t: t.pop(Q_PROJ)), r"missing layers\.1.*q_proj\.weight.*import it"),
        (edit_tensors(WEIGHTS, lambda t: t.update(extra=torch.zeros(1))), "unexpected extra.*import it again"),
        (
            edit_tensors(WEIGHTS, lambda t: t.update({Q_PROJ: torch.zeros(3, 5)})),
            r"layers\.1\.attention\.q_proj\.weight has shape \[3, 5\], its config says \[16, 24\]; take the weights",
        ),
        (
            edit_tensors(WEIGHTS, lambda t: t.update({"norm.weight": torch.zeros(24, dtype=torch.uint8)})),
            r"norm\.weight is U8, its place needs a floating-point dtype",
        ),
        (edit_tensors(WEIGHTS, lambda t: t.update(ids=torch.zeros(1, dtype=torch.int64))), "ids: dtype I64 is none of"),
        (cut, r"norm\.weight ends at byte \d+: it is cut short; fetch or import it again"),
        (write(WEIGHTS, (1 << 62).to_bytes(8, "little") + b"{}"), "its header claims 4611686018427387904 bytes"),
        (
            edit_header(lambda h: h[Q_PROJ].update(data_offsets=[h[Q_PROJ]["data_offsets"][0] - 4] * 2, shape=[0])),
            r"layers\.1\.attention\.q_proj\.weight begins at byte \d+ and not at \d+: it overlaps the tensor before",
        ),
        (
            edit_header(lambda h: h["norm.weight"].update(data_offsets=[1 << 40] * 2, shape=[0])),
            r"begins at byte \d+ and not at \d+: it leaves a hole before it",
        ),
        (edit_header(lambda h: h[Q_PROJ].update(shape=[2] * 1_000_000)), r"q_proj\.weight: shape \(2, 2"),
        (edit_header(lambda h: h[Q_PROJ].update(shape=[10**4000] * 4)), r"q_proj\.weight: shape"),
        (edit_header(lambda h: h.update({"n" * 10_000: {}})), r"n{120}\.\.\.: a tensor has dtype"),
        (edit_header(lambda h: h.update({Q_PROJ: None})), r"q_proj\.weight: a tensor has dtype, shape"),
        (edit_header(lambda h: h[Q_PROJ].update(dtype=["F32"])), r"q_proj\.weight: "),
        (edit_json("base/config.json", lambda v: v | {"format": "other"}), "is of the architecture 'None'"),
        (
            edit_json("base/config.json", lambda v: {"architectures": ["MambaForCausalLM"]}),
            "architecture 'MambaForCausalLM'.*`lamella base import` brings in",
        ),
        (edit_json("base/config.json", lambda v: v | {"kv_heads": [3, 2, 1]}), "layer 0: 4 query heads are no"),
        (edit_json("base/config.json", lambda v: [v]), "no JSON object"),
        (write("base/config.json", b"["), "is not JSON"),
        (write("base/quantization.json", b"{}"), "quantization"),
        (write("base/tokenizer.json", b"{}"), "tokenizer.json is malformed"),
        (lambda tree: (tree / WEIGHTS).unlink(), "cannot read .*model.safetensors"),
        (lambda tree: (tree / "base/config.json").unlink(), "no checkpoint and no version's tree; it holds model"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_base_is_named_with_a_remedy(tree: Path, damage, message: str) -> None:
    damage(tree)
    with pytest.raises(CheckpointError, match=message) as caught:
        inspect_model(tree)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_tensors(ADAPTER, lambda t: t.popitem()), "the base needs .*, the adapter lacks it; take the adapter"),
        (
            edit_json("adapter/adapter_config.json", lambda v: v | {"r": 3}),
            r"of layers\.0\.attention\.q_proj\.lora_a the base needs \[3, 24\], the adapter has it as \[2, 24\]",
        ),
        (
            edit_json("adapter/adapter_config.json", lambda v: v | {"target_modules": ["q_proj"]}),
            r"of layers\.0\.attention\.v_proj\.lora_a the base needs none",
        ),
        (edit_json("adapter/adapter_config.json", lambda v: v | {"use_dora": True}), "use_dora"),
        (write(ADAPTER, b"\0" * 7), "no sound safetensors file"),
        (lambda tree: (tree / ADAPTER).unlink(), "cannot read"),
    ],
)
def test_what_is_wrong_with_an_adapter_is_named(config: ModelConfig, tree: Path, damage, message: str) -> None:
    write_adapter(tree / "adapter", config)
    damage(tree)
    with pytest.raises(AdapterError, match=message):
        inspect_model(tree)


def test_a_tokenizer_with_too_many_tokens_is_refused(config: ModelConfig, tree: Path, tmp_path: Path) -> None:
    small = dataclasses.replace(config, vocab_size=100)
    model = LayeredTransformer(small)
    safetensors.torch.save_file({n: p.detach() for n, p in model.named_parameters()}, tree / WEIGHTS)
    (tree / "base/config.json").write_text(small.to_json())
    with pytest.raises(CheckpointError, match=r"259 tokens, embedding\.weight only 100 rows; take the tokenizer"):
        inspect_model(tree)


def test_what_is_no_checkpoint_is_told_apart(config: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        inspect_model(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="holds nothing"):
        inspect_model(tmp_path)
    write_adapter(tmp_path / "adapter", config)
    with pytest.raises(CheckpointError, match="an adapter without its base"):
        inspect_model(tmp_path / "adapter")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_any_damage_is_an_error_of_this_room_or_harmless(tree: Path, data) -> None:
    name = data.draw(st.sampled_from(["config.json", "model.safetensors", "tokenizer_config.json"]))
    path = tree / "base" / name
    sound = path.read_bytes()
    start = data.draw(st.integers(0, min(len(sound), 3000)))
    removed = data.draw(st.integers(0, 40))
    damaged = sound[:start] + data.draw(st.binary(max_size=40)) + sound[start + removed :]
    path.write_bytes(damaged)
    try:
        inspect_model(tree)
    except ModelError as error:
        assert len(str(error)) < 2000  # noqa: PT017 - any message of this room, but a short one
    finally:
        path.write_bytes(sound)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8", "U8", "I64", "?"]) | JSON,
        "shape": st.lists(st.integers(-1, 1 << 70), max_size=10) | JSON,
        "data_offsets": st.lists(st.integers(-1, 1 << 70), min_size=2, max_size=2) | JSON,
    }
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(header=st.dictionaries(st.text(max_size=8), ENTRY | JSON, max_size=4), data=st.binary(max_size=32))
def test_any_header_is_refused_or_sound(tmp_path: Path, header, data: bytes) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    try:
        with RawTensorFile(path) as file:
            assert sum(raw.end - raw.begin for raw in file.entries.values()) == len(data)
            in_order = sorted(file.entries.items(), key=lambda item: (item[1].begin, item[1].end))
            assert b"".join(bytes(file.read_bytes(name)) for name, _ in in_order) == data
    except CheckpointError as error:
        assert "fetch or import it again" in str(error)  # noqa: PT017 - each refusal has a remedy
