"""`lamella model plan` and `lamella model show`."""

import json
from pathlib import Path

import pytest
from simulators.models import write_adapter_version, write_base_version
from typer.testing import CliRunner

from model import ConfigError, ModelConfig, load_checkpoint, preset
from model.adapter_format import AdapterFormat
from model.plans import SHAPES
from server.cli.model import app
from server.cli.sizes import parse_amount, short_amount
from server.errors import ConfigurationError


def call(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    if done.exception is not None:
        raise done.exception
    return done.output


def call_json(*arguments: str) -> dict:
    return json.loads(call(*arguments, "--json"))


def test_a_preset_is_told_as_json() -> None:
    told = call_json("plan", "--preset", "openelm-1.1b")
    assert told["parameters"] == 1_079_891_456
    assert len(told["layers"]) == 28
    assert told["layers"][0] == {"query_heads": 16, "kv_heads": 4, "ffn_dim": 1024}
    assert told["layers"][27] == {"query_heads": 32, "kv_heads": 8, "ffn_dim": 8192}
    assert told["kv_cache_bytes_per_token"] == 2 * 21_632
    assert sum(layer["kv_cache_bytes"] for layer in told["layer_costs"]) == 2 * 21_632
    assert call_json("plan", "--preset", "openelm-1.1b", "--cache-bits", "8")["kv_cache_bytes_per_token"] == 21_632


def test_a_table_fits_a_terminal_and_ends_with_the_sums() -> None:
    for more in ((), ("--share-kv", "2", "--repeat-layers", "2")):
        out = call("plan", "--preset", "openelm-3b", *more)
        assert "3,036,647,424 weights" in out
        assert "…" not in out
        assert all(len(line.rstrip()) <= 80 for line in out.splitlines())
        assert "12288" in out
        assert "no forecast" in out
    assert "W+KV 70" in out


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_plan_is_made_for_a_number(shape: str, tmp_path: Path) -> None:
    told = call_json("plan", "--params", "30M", "--shape", shape, "--vocab", "8000", "--out", str(tmp_path / "new"))
    assert abs(told["parameters"] / 30e6 - 1) < 0.01
    written = ModelConfig.from_json((tmp_path / "new/config.json").read_bytes())
    assert written.parameter_count == told["parameters"]
    assert [layer["ffn_dim"] for layer in told["layers"]] == list(written.ffn_dims)
    with pytest.raises(ConfigurationError, match="give --out a new folder"):
        call("plan", "--preset", "tiny-pyramid", "--out", str(tmp_path / "new"))


def test_depth_width_and_context_can_be_chosen() -> None:
    told = call_json(
        "plan", "--params", "135M", "--shape", "uniform", "--layers", "30", "--width", "576", "--vocab", "49152",
        "--context", "512",
    )  # fmt: skip
    assert (len(told["layers"]), told["config"]["model_dim"], told["context"]) == (30, 576, 512)


def test_a_plan_is_searched_for_a_device() -> None:
    arguments = ("plan", "--memory", "60MB", "--tokens-per-second", "50", "--shape", "pyramid", "--context", "512")
    told = call_json(*arguments)
    assert told["shape"] == "pyramid"
    assert told["estimate"]["memory_bytes"] <= 60e6
    assert told["estimate"]["tokens_per_second"] >= 50
    assert "tokens a second" in call(*arguments)


def test_a_preset_takes_another_vocabulary_and_context() -> None:
    told = call_json("plan", "--preset", "openelm-270m", "--vocab", "49152", "--context", "8192")
    assert told["parameters"] == 271_527_168 + 1280 * (49_152 - 32_000)
    assert told["context"] == 8192
    assert call_json("plan", "--preset", "smollm2-135m")["context"] == 8192


def test_layers_share_when_asked() -> None:
    told = call_json("plan", "--preset", "tiny-pyramid", "--repeat-layers", "2", "--share-kv", "2")
    assert told["parameters"] == preset("tiny-pyramid").parameter_count
    assert told["config"]["weights_of"] == [0, 0, 2, 2, 4, 4, 6, 6]
    assert told["config"]["kv_of"] == [0, 0, 2, 2, 4, 4, 6, 6]


def test_pictures_are_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "c.png"):
        out = call("plan", "--preset", "tiny-pyramid", "--repeat-layers", "2", "--picture", str(tmp_path / name))
        assert name in out
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    for word in ("query heads", "kv heads", "feed-forward, lent", "tiny-pyramid: 1.0 million weights"):
        assert word in drawn
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --preset NAME, --params NUMBER, --memory BYTES"),
        (("--preset", "tiny-pyramid", "--params", "5M"), "one of"),
        (("--params", "lots"), "--params takes a number such as 270M"),
        (("--memory", "-3"), "--memory takes a number"),
        (("--preset", "tiny-pyramid", "--cache-bits", "7"), "32, 16 or 8"),
        (("--preset", "tiny-pyramid", "--layers", "7"), "--layers and --width belong to --params"),
        (("--preset", "tiny-pyramid", "--shape", "uniform"), "--shape belongs to --params and --memory"),
        (("--preset", "tiny-pyramid", "--picture", "x.pdf"), "ends in .svg or .png"),
    ],
)
def test_a_wrong_option_is_told(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call("plan", *arguments)


def test_an_impossible_plan_is_told() -> None:
    with pytest.raises(ConfigError, match="allow more memory"):
        call("plan", "--memory", "1MB")
    with pytest.raises(ConfigError, match="there are openelm"):
        call("plan", "--memory", "1GB", "--shape", "cube")
    with pytest.raises(ConfigError, match="openelm-270m"):
        call("plan", "--preset", "openelm-7b")


def test_a_tree_is_shown_with_its_adapter(tmp_path: Path) -> None:
    base = write_base_version(tmp_path / "one")
    tree = write_adapter_version(base, tmp_path / "two")
    out = " ".join(call("show", str(tree), "--picture", str(tmp_path / "x.svg")).split())
    assert "LoRA rank 2, alpha 4 on q_proj, v_proj" in out
    assert "stored as F16 2.05 MB" in out
    assert "a chat template, an answer ends at <|endoftext|> or <|im_end|>" in out
    assert (tmp_path / "x.svg").exists()

    told = call_json("show", str(base))
    assert told["parameters"] == load_checkpoint(base / "base").config.parameter_count
    assert told["adapter"] is None
    assert told["dtypes"] == {"F16": 2 * told["parameters"]}
    assert [part["name"] for part in told["parts"]] == ["embedding", "attention", "feed-forward", "norms"]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_tree_is_shown_with_the_format_of_its_adapter(tmp_path: Path, form: AdapterFormat) -> None:
    base = write_base_version(tmp_path / "one")
    tree = write_adapter_version(base, tmp_path / "two", form=form)
    assert f"({form})" in call("show", str(tree))
    told = call_json("show", str(tree))["adapter"]
    assert told["form"] == form
    assert told["num_bytes"] < told["parameters"] * {"int8": 1.1, "int4": 0.6}[form]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("270M", 270e6), ("1.1B", 1.1e9), ("300MB", 300e6), ("12GB", 12e9), ("12 GB/s", 12e9), ("50GFLOPs", 50e9),
     ("7", 7.0), ("1k", 1000.0), ("2T", 2e12)],
)  # fmt: skip
def test_amounts_are_read_as_people_write_them(text: str, expected: float) -> None:
    assert parse_amount(text, option="--x") == expected


@pytest.mark.parametrize("text", ["", "M", "-1M", "1e9", "nan", "0", "9" * 400, "3 apples"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--x takes a number"):
        parse_amount(text, option="--x")


def test_amounts_are_written_short() -> None:
    assert [short_amount(v) for v in (271_527_168, 1_079_891_456, 1234, 7)] == ["272M", "1.08B", "1.23k", "7"]


@pytest.mark.slow
def test_bench_runs_each_precision_that_is_asked_for(tmp_path: Path) -> None:
    write_base_version(tmp_path)
    told = call_json("bench", str(tmp_path), "--precision", "float32", "--prompt-tokens", "8", "--new-tokens", "4")
    ours = [row for row in told["engines"] if row["engine"] == "torch"]
    assert [row["precision"] for row in ours] == ["float32"]
    assert ours[0]["decode_tokens_per_s"] > 0
    assert ours[0]["weight_bytes"] > 0
    assert told["read_bandwidth_bytes_per_s"] > 0


def test_bench_knows_its_precisions(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"No precision 'int3'; choose among float32, bfloat16"):
        call("bench", str(tmp_path), "--precision", "int3")
