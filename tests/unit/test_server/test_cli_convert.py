"""`lamella convert` on a tiny model."""

import json
import shutil
from pathlib import Path

import pytest
from simulators.models import write_base_version
from typer.testing import CliRunner

from delta_updates import base_hash, scan_tree
from model.errors import ExportError
from server.base_origin import base_hash_of, origin_in
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


def test_a_folder_says_which_base_it_was_made_from(tree: Path, tmp_path: Path) -> None:
    tree, out = Path(shutil.copytree(tree, tmp_path / "tree")), tmp_path / "out"
    config = json.loads((tree / "base" / "config.json").read_text())
    (tree / "base" / "config.json").write_text(json.dumps(config | {"norm_eps": 1e-6}))  # OpenELM's own
    run("--input-model", tree, "--output-format", "hf", "--out", out, "--no-speed", "--json")
    made_from = base_hash(scan_tree(tree))
    assert origin_in(out) == made_from == base_hash_of(tree) == base_hash_of(tree / "base")
    again = tmp_path / "again"  # from a folder that says so itself
    run("--input-model", out, "--output-format", "hf", "--out", again, "--no-speed", "--json")
    assert origin_in(again) == made_from


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"lamella_made_from": "../etc"}', '{"lamella_made_from": 4}', "[" * 9000]
)
def test_what_says_nothing_of_a_base_has_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert origin_in(tmp_path) is None
