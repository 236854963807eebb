"""Applying in real processes: killed again and again it ends in the complete target, and it takes little memory."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from delta_updates import build_package, scan_tree, tree_hash, verify_tree, work_folder

pytestmark = pytest.mark.slow

TENSORS, SIDE = 48, 1448


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A source, a target of 200 MB in two files, and the package between them."""
    top = tmp_path_factory.mktemp("versions")
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        old = {f"layer.{i}": draw.normal(0, 0.02, (SIDE, SIDE)).astype(np.float16) for i in range(TENSORS // 2)}
        new = {key: (value * 1.001).astype(np.float16) for key, value in old.items()}
        for version, tensors in (("v1", old), ("v2", new)):
            (top / version).mkdir(exist_ok=True)
            save_file(tensors, top / version / f"{name}.safetensors")
    build_package(top / "v1", top / "v2", top / "package", workers=2)
    return top / "v1", top / "v2", top / "package"


def made(out: Path) -> int:
    """How many bytes of an unfinished target lie on the disk."""
    total = 0
    with contextlib.suppress(FileNotFoundError):  # published in this moment
        for path in (work_folder(out) / "tree").glob("*.safetensors"):
            total += path.stat().st_size
    return total


def journaled(top: Path) -> int:
    """How far an in-place apply under `top` has come: the bytes of its journal, a line for each thing done."""
    return sum(path.stat().st_size for path in top.glob(".*/journal"))


def start(*arguments: object) -> "subprocess.Popen[str]":
    program = "from server.cli import main; main()"
    command = [sys.executable, "-c", program, "delta", "apply", *map(str, arguments), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_random_moments_it_ends_complete(
    versions: tuple[Path, Path, Path], tmp_path: Path, stop: signal.Signals
) -> None:
    source, target, package = versions
    out, draw, kills = tmp_path / "out", random.Random(0), 0
    while True:
        until = made(out) + draw.randint(-20 << 20, 50 << 20)
        process = start(source, package, "--out", out)
        while made(out) <= until and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(stop)
        printed, told = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode in {-stop, 130}, told
        kills += 1
        # Nothing appears before it is whole.
        assert not out.exists() or verify_tree(out, scan_tree(target)) is None
    result = json.loads(printed)
    assert kills >= 3
    assert result["bytes_resumed"] > 32 << 20
    verify_tree(out, scan_tree(target))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_in_place_it_ends_complete(versions: tuple[Path, Path, Path], tmp_path: Path) -> None:
    source, target, package = versions
    tree, draw, kills = tmp_path / "tree", random.Random(1), 0
    shutil.copytree(source, tree)
    while True:
        until = journaled(tmp_path) + draw.randint(100, 4000)
        process = start(tree, package, "--in-place")
        while journaled(tmp_path) <= until and process.poll() is None:
            time.sleep(0.005)
        if kills < 8:
            process.send_signal(signal.SIGKILL)
        printed, told = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, told
        kills += 1
        # Gone, or whole: the source before the first change, the target after the last.
        if tree.exists():
            assert tree_hash(scan_tree(tree)) in {tree_hash(scan_tree(source)), tree_hash(scan_tree(target))}
    result = json.loads(printed)
    assert kills >= 2
    assert result["steps_resumed"] > 0 or result["bytes_moved"] == 0
    verify_tree(tree, scan_tree(target))
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


MEASURED = """
import sys
from pathlib import Path
from delta_updates import apply_in_place, apply_package
from delta_updates.memory import peak_memory_bytes
before = peak_memory_bytes()
source, package, out, digest = *map(Path, sys.argv[1:4]), sys.argv[4]
if out.name == "in-place":
    apply_in_place(source, package, out, expected_target_hash=digest)
else:
    apply_package(source, package, out, expected_target_hash=digest)
print(peak_memory_bytes() - before)
"""


@pytest.mark.parametrize("out", ["beside", "in-place"])
def test_memory_does_not_grow_with_the_model(versions: tuple[Path, Path, Path], tmp_path: Path, out: str) -> None:
    source, target, package = versions
    tree = tmp_path / "tree"
    shutil.copytree(source, tree)
    command = [sys.executable, "-c", MEASURED, tree, package, tmp_path / out, tree_hash(scan_tree(target))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Of 200 MB; the interpreter with its imports is not counted.
    assert int(done.stdout) < 96_000_000
