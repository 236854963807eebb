"""`lamella quantize` and `lamella evaluate` on a tiny model."""

import json
from pathlib import Path

import pytest
from simulators.models import TEXTS, write_adapter_version, write_base_version
from typer.testing import CliRunner

from model import QuantizationError, load_version
from model.quantization import quantized_layers
from server.cli.main import app
from server.errors import ConfigurationError, EvaluationError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    (folder / "text.txt").write_text("\n".join(TEXTS))
    questions = [{"query": "Question: who jumps?", "choices": ["The fox", "dogs"], "gold": n % 2} for n in range(4)]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
    return write_adapter_version(write_base_version(folder / "base-version"), folder / "version")


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a_version_keeps_its_adapter_on_the_smaller_base(tree: Path, tmp_path: Path) -> None:
    said = run("quantize", tree, "--out", tmp_path / "out", "--bits", "4")
    assert "less), nearest levels" in said
    loaded = load_version(tmp_path / "out")
    assert loaded.has_adapter
    assert list(quantized_layers(loaded.model))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / "adapter" / name).read_bytes() == (tree / "adapter" / name).read_bytes()


def test_a_base_is_calibrated_and_told_in_json(tree: Path, tmp_path: Path) -> None:
    report = json.loads(
        run(
            "quantize", tree / "base", "--out", tmp_path / "out", "--bits", "4",
            "--calibrate", tree.parent / "text.txt",
            "--keep-sensitive", "0.05", "--calibration-tokens", "1024", "--json",
        )
    )  # fmt: skip
    assert report["is_calibrated"]
    assert report["bytes_after"] < 0.5 * report["bytes_before"]
    assert report["kept"]
    assert (tmp_path / "out" / "quantization.json").is_file()


def test_perplexity_and_answers(tree: Path) -> None:
    text, questions = tree.parent / "text.txt", tree.parent / "questions.jsonl"
    options = ["--perplexity", text, "--max-tokens", 500, "--context", 128, "--choices", questions, "--limit", 3]
    found = json.loads(run("evaluate", tree, *options, "--json"))
    assert found["text.txt"]["tokens"] == 499
    assert 1 < found["text.txt"]["perplexity"] < 5000
    assert found["questions.jsonl"]["questions"] == 3
    low, high = found["questions.jsonl"]["accuracy_normalised_95"]
    assert low <= found["questions.jsonl"]["accuracy_normalised"] <= high
    assert "perplexity" in run("evaluate", tree / "base", *options, "--dtype", "bfloat16")


def test_the_loss_of_each_group_of_held_out_text(tree: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out"
    held_out.mkdir()
    (tmp_path / "one.jsonl").write_text('{"prompt": "p", "completion": "q"}')
    lines = [{"prompt": f"q{n}", "completion": f"answer {n}", "group": "abc"[n % 3]} for n in range(36)]
    for person in range(6):  # a file each
        own = lines[person * 6 : person * 6 + 6] + [{**lines[0], "group": None}] * (person == 0)
        (held_out / f"judge-{person}.jsonl").write_text("\n".join(json.dumps(line) for line in own))
    found = json.loads(run("evaluate", tree, "--groups", f"jsonl:{tmp_path}", "--before", tree / "base", "--json"))
    assert {name: one["examples"] for name, one in found.items()} == {
        "(all)": 37,
        "a": 12,
        "b": 12,
        "c": 12,
        "(smaller groups)": 1,
    }
    assert found["a"]["people"] == 6
    low, high = found["a"]["change_95"]
    assert low <= found["a"]["change"] <= high
    assert found["a"]["change"] != 0  # the adapter does something
    alone = json.loads(run("evaluate", tree, "--groups", f"jsonl:{tmp_path}", "--json"))
    assert alone["a"] == {"examples": 12, "people": 6, "loss": found["a"]["loss"]}
    for person in range(6):
        (held_out / f"judge-{person}.jsonl").write_text('{"prompt": "p", "completion": "q"}')
    with pytest.raises(EvaluationError, match="nothing is known by group"):
        run("evaluate", tree, "--groups", f"jsonl:{tmp_path}")
    with pytest.raises(ConfigurationError, match="--before is for --groups"):
        run("evaluate", tree, "--perplexity", tree.parent / "text.txt", "--before", tree)


def test_what_cannot_be_done_is_said(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigurationError, match="not empty"):
        run("quantize", tree, "--out", tmp_path / "full")
    with pytest.raises(QuantizationError, match="bits must be"):
        run("quantize", tree, "--out", tmp_path / "out", "--bits", "5")
    with pytest.raises(ConfigurationError, match="cannot read"):
        run("quantize", tree, "--out", tmp_path / "out", "--calibrate", tmp_path / "none.txt")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigurationError, match="what to measure"):
        run("evaluate", tree)
    with pytest.raises(ConfigurationError, match="--dtype"):
        run("evaluate", tree, "--perplexity", tree.parent / "text.txt", "--dtype", "float8")
    with pytest.raises(ConfigurationError, match="cannot read"):
        run("evaluate", tree, "--perplexity", tmp_path / "none.txt")
