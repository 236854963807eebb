"""`lamella delta` on folders and on single files."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from delta_updates import ApplyProgress, ApplyResult, apply_in_place, apply_package
from delta_updates.errors import DeltaError, PackageFormatError
from delta_updates.package import PackageReader
from server.cli.delta_files import as_tree, unwrap
from server.cli.main import app
from server.errors import ConfigurationError


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["delta", *map(str, arguments)], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.stdout


def write(path: Path, *, seed: int) -> Path:
    generator = np.random.default_rng(0)
    old = generator.normal(size=(64, 128)).astype(np.float16)
    moved = old + np.float16(0.001) * np.random.default_rng(seed).integers(0, 2, old.shape).astype(np.float16)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"layer.weight": moved if seed else old}, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "one.safetensors", seed=0), write(tmp_path / "two.safetensors", seed=1)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name, seed in (("v1", 0), ("v2", 1)):
        write(tmp_path / name / "model.safetensors", seed=seed)
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path / "v1", tmp_path / "v2"


def test_a_folder_goes_there_and_comes_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    built = json.loads(run("build", old, new, "--out", tmp_path / "p", "--json"))
    assert built["package_bytes"] == (tmp_path / "p").stat().st_size < built["target_bytes"]
    assert set(built) >= {"package_bytes", "target_bytes", "ratio", "seconds", "peak_memory_bytes", "codecs"}
    assert built["peak_memory_bytes"] > 1_000_000
    applied = json.loads(run("apply", old, tmp_path / "p", "--out", tmp_path / "v2again", "--json"))
    assert applied["target_hash"] == built["target_hash"]
    for file in new.iterdir():
        assert (tmp_path / "v2again" / file.name).read_bytes() == file.read_bytes()


def test_a_full_package_needs_no_source(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, new = folders
    run("build", new, "--out", tmp_path / "p")
    assert "nobody vouches" in run("apply", tmp_path / "p", "--out", tmp_path / "again")
    said = run("inspect", tmp_path / "p")
    assert "full package" in said
    assert "model.safetensors" in said


def test_looking_into_a_package_reads_all_of_it(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    built = json.loads(run("build", old, new, "--out", tmp_path / "p", "--json"))
    found = json.loads(run("inspect", tmp_path / "p", "--json"))
    assert (found["package_bytes"], found["target_hash"]) == (built["package_bytes"], built["target_hash"])
    records = {codec: count for codec, count in built["codecs"].items() if codec != "linked"}
    assert found["codecs"] == records
    assert sum(sum(file["codecs"].values()) for file in found["files"]) == sum(records.values()) > 0
    whole = (tmp_path / "p").read_bytes()
    for length in (len(whole) - 1, len(whole) - found["files"][-1]["package_bytes"]):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(PackageFormatError, match="cut off"):
            run("inspect", tmp_path / "cut")
    (tmp_path / "longer").write_bytes(whole + b"x")
    with pytest.raises(PackageFormatError, match="after the package's end"):
        run("inspect", tmp_path / "longer")


def test_files_stay_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = files
    run("build", old, new, "--out", tmp_path / "p")
    assert "written" in run("apply", old, tmp_path / "p", "--out", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == new.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.safetensors",
        "one.safetensors",
        "p",
        "two.safetensors",
    ]


def test_an_unchanged_file_is_a_file_of_its_own(files: tuple[Path, Path], tmp_path: Path) -> None:
    old, _ = files
    shutil.copyfile(old, tmp_path / "same.safetensors")
    run("build", old, tmp_path / "same.safetensors", "--out", tmp_path / "p")
    run("apply", old, tmp_path / "p", "--out", tmp_path / "again.safetensors")
    (tmp_path / "again.safetensors").write_bytes(b"edited")
    assert old.read_bytes() == (tmp_path / "same.safetensors").read_bytes()


class CutOffError(Exception):
    """What ends an apply in the middle."""


def cut_off_at_end(done: int, total: int) -> None:
    if done == total:
        raise CutOffError


def test_what_was_cut_off_goes_on(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    built = json.loads(run("build", old, new, "--out", tmp_path / "p", "--json"))
    with pytest.raises(CutOffError):
        apply_package(
            old, tmp_path / "p", tmp_path / "v3", expected_target_hash=built["target_hash"], on_progress=cut_off_at_end
        )
    assert "kept from before" in run("apply", old, tmp_path / "p", "--out", tmp_path / "v3")
    assert (tmp_path / "v3/model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "v1", "v2", "v3"]


def test_a_single_file_that_was_cut_off_goes_on(files: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = files
    built = json.loads(run("build", old, new, "--out", tmp_path / "p", "--json"))
    out = tmp_path / "three.safetensors"

    def made(folder: Path, *, on_progress: ApplyProgress | None = None) -> ApplyResult:
        with ExitStack() as stack:
            with PackageReader(tmp_path / "p") as reader:
                files = reader.header.files
            tree = as_tree(old, stack, named=files)
            return apply_package(
                tree, tmp_path / "p", folder, expected_target_hash=built["target_hash"], on_progress=on_progress
            )

    with pytest.raises(CutOffError):
        unwrap(out, lambda folder: made(folder, on_progress=cut_off_at_end))
    assert not out.exists()
    assert unwrap(out, made).bytes_resumed > 0
    assert out.read_bytes() == new.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_changes_in_place(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    built = json.loads(run("build", old, new, "--out", tmp_path / "p", "--json"))
    applied = json.loads(run("apply", old, tmp_path / "p", "--in-place", "--json"))
    assert applied["target_hash"] == built["target_hash"]
    assert applied["bytes_moved"] > 0
    assert (old / "model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes()
    told = run("apply", old, tmp_path / "p", "--in-place")
    assert "0 bytes changed" in " ".join(told.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "v1", "v2"]


def test_a_change_in_place_that_was_cut_off_goes_on(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    built = json.loads(run("build", old, new, "--out", tmp_path / "p", "--json"))
    with pytest.raises(CutOffError):
        apply_in_place(
            old,
            tmp_path / "p",
            tmp_path / ".v1.journal",
            expected_target_hash=built["target_hash"],
            on_progress=cut_off_at_end,
        )
    assert not old.exists()
    run("apply", old, tmp_path / "p", "--in-place")
    assert (old / "model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "v1", "v2"]


def test_what_does_not_go_together_in_place(files: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = files
    run("build", old, new, "--out", tmp_path / "p")
    with pytest.raises(ConfigurationError, match="only folders"):
        run("apply", old, tmp_path / "p", "--in-place")
    with pytest.raises(ConfigurationError, match="no --out"):
        run("apply", old, tmp_path / "p", "--in-place", "--out", tmp_path / "x")
    with pytest.raises(ConfigurationError, match="--out"):
        run("apply", old, tmp_path / "p")
    with pytest.raises(ConfigurationError, match="is not a file"):
        run("apply", old, tmp_path / "none", "--in-place")


def test_bench_runs_the_peers(folders: tuple[Path, Path]) -> None:
    old, new = folders
    said = run("bench", old, new)
    assert "lamella" in said
    assert "bsdiff4" in said
    figures = json.loads(run("bench", old, new, "--json"))
    assert figures["peers"]["bsdiff4"]["size"] > figures["package_bytes"]
    assert figures["apply_seconds"] > 0


def test_bench_takes_new_and_empty_files(folders: tuple[Path, Path]) -> None:
    old, new = folders
    (new / "new.txt").write_text("something that was not there", encoding="utf-8")
    (new / "empty.txt").touch()
    figures = json.loads(run("bench", old, new, "--json"))
    for peer in figures["peers"].values():
        assert peer["why_not"] == "needs the program zstd" or peer["size"] > 0


def test_a_file_in_a_folder_that_may_not_be_written(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with ExitStack() as stack:
        folder = as_tree(files[0], stack)
        assert folder.parent != tmp_path
        assert (folder / "single-file.safetensors").read_bytes() == files[0].read_bytes()


def test_what_does_not_fit_is_told_and_leaves_nothing(
    files: tuple[Path, Path], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="two folders or two files"):
        run("build", files[0], folders[1], "--out", tmp_path / "p")
    with pytest.raises(ConfigurationError, match="does not exist; make it"):
        run("build", *folders, "--out", tmp_path / "nowhere" / "p")
    with pytest.raises(ConfigurationError, match="got 3 paths"):
        run("build", *folders, files[0], "--out", tmp_path / "p")
    run("build", *folders, "--out", tmp_path / "p")
    with pytest.raises(ConfigurationError, match="is for a folder"):
        run("apply", files[0], tmp_path / "p", "--out", tmp_path / "again")
    with pytest.raises(DeltaError):
        run("apply", folders[1], tmp_path / "p", "--out", tmp_path / "again")
    with pytest.raises(DeltaError, match="expected"):
        run("apply", folders[0], tmp_path / "p", "--out", tmp_path / "again", "--expected-hash", "0" * 64)
    assert not (tmp_path / "again").exists()
    run("build", *files, "--out", tmp_path / "f")
    with pytest.raises(ConfigurationError, match="exists already"):
        run("apply", files[0], tmp_path / "f", "--out", files[1])
