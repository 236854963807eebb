"""`lamella convert` on a tiny model."""

import json
from pathlib import Path

import pytest
from simulators.models import write_base_version
from typer.testing import CliRunner

from model.errors import ExportError
from server.cli.main import app


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_version(tmp_path_factory.mktemp("convert") / "version")


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_it_says_what_it_gained(tree: Path, tmp_path: Path) -> None:
    said = run(
        "--input-model", tree, "--output-format", "gguf", "--target-device", "raspberry-pi-5", "--quantization", "int8",
        "--out", tmp_path / "out", "--no-speed",
    )  # fmt: skip
    assert "model-int8.gguf: openelm" in said
    assert "% smaller" in said
    assert "On raspberry-pi-5 (Raspberry Pi 5 of 8 GB): needs" in said
    assert "fits. Run it with 4 threads." in said
    assert (tmp_path / "out" / "model-int8.gguf").is_file()


def test_for_programs_it_is_json(tree: Path, tmp_path: Path) -> None:
    said = run("--input-model", tree, "--output-format", "mlx", "--out", tmp_path / "out", "--no-speed", "--json")
    report = json.loads(said)
    assert (report["form"], report["quantization"], report["source_kind"]) == ("mlx", "int4", "version")
    assert report["bytes_after"] < report["bytes_before"]
    assert report["fit"]["fits"] is True
    assert report["speed_before"] is None


def test_errors_say_what_to_do(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="choose gguf, mlx, hf, executorch"):
        run("--input-model", tree, "--output-format", "onnx", "--out", tmp_path / "out")
