import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from simulators.exchange import add_adapter, byte_pair_tokenizer, make_tree

from model import CheckpointError, ModelConfig, load_checkpoint, load_version
from model.errors import ExportError
from model.export import export_gguf, export_hf
from model.export.convert import Conversion, convert_model, source_kind
from model.export.devices import DEVICES, device_class, fit
from model.importers import import_gguf
from model.quantization.convert import QuantizationOptions, quantize_checkpoint

CONFIG = ModelConfig(
    vocab_size=260,
    model_dim=64,
    head_dim=32,
    query_heads=(4, 2),
    kv_heads=(2, 1),
    ffn_dims=(64, 32),
    max_context=64,
    qk_norm=True,
    norm_eps=1e-6,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree", CONFIG, byte_pair_tokenizer())
    return tmp_path / "tree"


def asked(source: Path, out: Path, form: str, **changes: object) -> Conversion:
    return Conversion(source=source, out=out, form=form, device="phone", **{"measures_speed": False, **changes})


@pytest.mark.parametrize("form", ["gguf", "mlx"])
@pytest.mark.parametrize("quantization", ["fp16", "int8", "int4"])
def test_every_quantization_of_both(tree: Path, tmp_path: Path, form: str, quantization: str) -> None:
    add_adapter(tree, CONFIG, stddev=0.1)
    report = convert_model(asked(tree, tmp_path / "out", form, quantization=quantization))
    assert report.source_kind == "version"
    assert report.architecture == "openelm"
    assert report.bytes_after < report.bytes_before
    assert report.out.exists()
    values = report.to_json()
    assert values["fit"]["fits"]
    assert values["ratio"] == pytest.approx(report.bytes_after / report.bytes_before, abs=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tree"]


TEXT = Path(__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["gguf", "mlx"])
def test_a_text_makes_int4_closer_to_the_model(tree: Path, tmp_path: Path, form: str) -> None:
    add_adapter(tree, CONFIG, stddev=0.1)
    plain, found = (
        convert_model(asked(tree, tmp_path / name, form, quantization="int4", calibration_text=text))
        for name, text in (("plain", None), ("found", TEXT))
    )
    assert found.bytes_after != plain.bytes_after  # some matrices have 8 bits
    if form == "gguf":
        tokens = torch.tensor(byte_pair_tokenizer().encode(TEXT)[:2048]).view(-1, 64)
        expected = load_version(tree).model.requires_grad_(False)(tokens)
        errors = []
        for report in (plain, found):
            import_gguf(report.out, report.out.parent / "back", dtype=torch.float32)
            errors.append(float((load_checkpoint(report.out.parent / "back")(tokens) - expected).norm()))
        assert errors[1] < errors[0]
    with pytest.raises(ExportError, match="int8 in gguf takes none"):
        convert_model(asked(tree, tmp_path / "no", "gguf", quantization="int8", calibration_text=TEXT))


def test_what_is_quantised_already_is_not_calibrated(tree: Path, tmp_path: Path) -> None:
    quantize_checkpoint(tree / "base", tmp_path / "few", QuantizationOptions(bits=4))
    request = asked(tmp_path / "few", tmp_path / "out", "mlx", quantization="int4", calibration_text=TEXT)
    with pytest.raises(ExportError, match="is quantised already"):
        convert_model(request)


def test_sources_of_every_kind_become_the_same_file(tree: Path, tmp_path: Path) -> None:
    export_hf(tree, tmp_path / "hf", dtype="float16")
    export_gguf(tree, tmp_path / "x.gguf", quantization="f16")
    sources = {
        "version": tree,
        "checkpoint": tree / "base",
        "huggingface": tmp_path / "hf",
        "gguf": tmp_path / "x.gguf",
    }
    for kind, source in sources.items():
        report = convert_model(asked(source, tmp_path / kind, "gguf", quantization="fp16"))
        assert report.source_kind == kind
        import_gguf(report.out, tmp_path / "back" / kind)
    weights = [(tmp_path / "back" / kind / "model.safetensors").read_bytes() for kind in sources]
    assert len(set(weights)) == 1


@pytest.mark.slow
def test_both_sides_are_measured(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    report = convert_model(asked(tree, tmp_path / "out", "gguf", measures_speed=True))
    assert report.quantization == DEVICES["phone"].quantization
    for speed in (report.speed_before, report.speed_after):
        assert speed is not None
        assert speed.prefill_tokens_per_s > 0
        assert speed.decode_tokens_per_s > 0


def test_what_this_machine_cannot_run_is_not_measured(tree: Path, tmp_path: Path) -> None:
    report = convert_model(asked(tree, tmp_path / "out", "mlx", measures_speed=True))
    assert report.speed_before is not None
    assert report.speed_after is None
    assert "measure it there" in report.speed_note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "onnx"}, "no output format 'onnx'"),
        ({"quantization": "int2"}, "no quantization 'int2'"),
        ({"device": "toaster"}, "no device class 'toaster'"),
        ({"form": "hf", "quantization": "int4"}, "choose fp16, or gguf or mlx"),
    ],
)
def test_what_cannot_be_asked_for(tree: Path, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        convert_model(replace(asked(tree, tmp_path / "out", "gguf"), **changes))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert_model(asked(tree, tmp_path / "out", "gguf"))
    with pytest.raises(ExportError, match="not an empty folder"):
        convert_model(asked(tree, tmp_path / "out", "gguf"))


def test_a_failed_conversion_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    (tree / "base" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError):
        convert_model(asked(tree, tmp_path / "out", "gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_a_model_without_room_is_refused_before_the_work(tmp_path: Path) -> None:
    large = replace(CONFIG, vocab_size=10_000, max_context=1 << 20)
    make_tree(tmp_path / "tree", large, byte_pair_tokenizer())
    tight = replace(asked(tmp_path / "tree", tmp_path / "out", "gguf"), device="raspberry-pi-zero-2", context=1 << 20)
    with pytest.raises(ExportError, match=r"need about \d+ MB; .* raspberry-pi-zero-2 .* 384 MB; choose fewer bits"):
        convert_model(tight)
    assert not (tmp_path / "out").exists()


def test_room_is_weights_and_cache_and_the_rest() -> None:
    device = device_class("phone")
    room = fit(device, CONFIG, weights_bytes=1000, context=10**9)
    assert room.context == CONFIG.max_context
    assert room.cache_bytes == 2 * 32 * (2 + 1) * 2 * 64
    assert room.needed_bytes == 1000 + room.cache_bytes + room.runtime_bytes
    assert room.usable_bytes == 3_000_000_000


@pytest.mark.parametrize("content", [None, "[" * 100_000, "{"])
def test_what_is_no_model_is_said(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"is no checkpoint folder|config\.json is not JSON"):
        source_kind(tmp_path)


def test_executorch_is_missed_by_name(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    with pytest.raises(ExportError, match=r"pip install 'lamella\[executorch\]'"):
        convert_model(asked(tree, tmp_path / "out", "executorch"))
    assert not (tmp_path / "out").exists()


def test_the_cached_step_computes_what_the_model_does(tree: Path) -> None:
    import torch

    from model.export.executorch import CachedStep

    model = load_checkpoint(tree / "base")
    tokens = torch.randint(0, 260, (1, 12), generator=torch.Generator().manual_seed(0))
    expected = model(tokens)[0]
    step = CachedStep(load_checkpoint(tree / "base"), 32, dtype=torch.float32)
    torch.testing.assert_close(step(tokens[:, :5], torch.tensor([0]))[0], expected[4], atol=1e-4, rtol=0)
    for position in range(5, 12):
        got = step(tokens[:, position : position + 1], torch.tensor([position]))[0]
        torch.testing.assert_close(got, expected[position], atol=1e-4, rtol=0)
