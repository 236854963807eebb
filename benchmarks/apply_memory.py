"""What applying a package takes of memory above the interpreter, for models of several sizes.

    python benchmarks/apply_memory.py [--gigabytes 0.25 1 2] [--json]

Models are made up: float16 matrices of 4096 x 4096 that all moved a little, and an embedding. The package is applied by
one worker, as on a device, beside its source and in place, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from safetensors.numpy import save_file  # noqa: E402 - beside what the path now knows

from delta_updates import build_package  # noqa: E402 - the same

_SIDE = 4096
_MEASURED = """
import sys
from pathlib import Path
from delta_updates import apply_in_place, apply_package
from delta_updates.memory import peak_memory_bytes
before = peak_memory_bytes()
source, package, out, digest = *map(Path, sys.argv[1:4]), sys.argv[4]
(apply_in_place if out.name == "journal" else apply_package)(source, package, out, expected_target_hash=digest)
print(peak_memory_bytes() - before)
"""


def write_versions(folder: Path, gigabytes: float) -> tuple[Path, Path]:
    """Two versions of a model; their shards have at most 0.5 GB, so that making them takes little memory, too."""
    draw = np.random.default_rng(0)
    each = _SIDE * _SIDE * 2
    matrices = max(1, round(gigabytes * 1e9 / each))
    folders = folder / "old", folder / "new"
    for version in folders:
        version.mkdir(parents=True)
    for number, first in enumerate(range(0, matrices, 16)):
        names = [f"layers.{i}.weight" for i in range(first, min(first + 16, matrices))]
        old = {name: draw.normal(0, 0.02, (_SIDE, _SIDE)).astype(np.float16) for name in names}
        save_file(old, folders[0] / f"model-{number}.safetensors")
        new = {name: (values * np.float16(1.001)).astype(np.float16) for name, values in old.items()}
        save_file(new, folders[1] / f"model-{number}.safetensors")
    return folders


def measure(gigabytes: float) -> dict[str, float]:
    """Bytes above the interpreter, applied beside the source and in place."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old, new = write_versions(folder, gigabytes)
        built = build_package(old, new, folder / "package")
        shutil.rmtree(new)
        told = {"target_bytes": float(built.target_bytes), "package_bytes": float(built.package_bytes)}
        for label, out in (("beside_bytes", "out"), ("in_place_bytes", "journal")):
            command = [sys.executable, "-c", _MEASURED, str(old), str(folder / "package"), str(folder / out)]
            done = subprocess.run([*command, built.target_hash], cwd=ROOT, capture_output=True, text=True, check=True)
            told[label] = float(done.stdout)
            shutil.rmtree(folder / out, ignore_errors=True)
        return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.25, 1, 2], help="sizes of the target")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = [measure(gigabytes) for gigabytes in options.gigabytes]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| target | beside the source | in place |")
    print("|---|---|---|")
    for row in rows:
        beside, within = (row[name] / 1e6 for name in ("beside_bytes", "in_place_bytes"))
        print(f"| {row['target_bytes'] / 1e9:.2f} GB | {beside:.0f} MB | {within:.0f} MB |")


if __name__ == "__main__":
    main()
