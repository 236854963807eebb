"""Every benchmark, one after the other: what `make bench` runs.

    python benchmarks/run.py

Converts SmolLM2 from the installed package first, so that whole models are measured too.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run each benchmark as its own process; the first that fails ends the run."""
    from model import find_smollm2, import_gguf  # noqa: PLC0415 - seconds of torch, after --help

    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        tree = Path(folder) / "v1"
        import_gguf(find_smollm2(), tree / "base")
        for script in (["deltas.py", "--base", str(tree)],):
            print(f"== {script[0]}", flush=True)
            done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / script[0]), *script[1:]], check=False)
            if done.returncode != 0:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
