"""Every benchmark, one after the other: what `make bench` runs.

    python benchmarks/run.py                                                # all that needs no file of yours
    python benchmarks/run.py --text wiki.valid.txt --choices arc_easy.jsonl # and what fewer bits cost

Converts SmolLM2 from the installed package first, so that whole models are measured too. About two hours on two cores,
and hours more for the million mutated packages at the end, which `--mutations` makes fewer; let nothing else run.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run each benchmark as its own process; the first that fails ends the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="text whose perplexity quantised weights are measured on")
    parser.add_argument("--choices", type=Path, action="append", default=[], help="questions beside it (repeatable)")
    parser.add_argument("--mutations", type=int, default=1_000_000, help="mutated packages; 0 for none")
    options = parser.parse_args()
    from model import find_smollm2, import_gguf  # noqa: PLC0415 - seconds of torch, after --help

    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        tree = Path(folder) / "v1"
        import_gguf(find_smollm2(), tree / "base")
        base = str(tree / "base")
        scripts = [
            ["deltas.py", "--base", str(tree)],
            ["adapters.py", "--base", str(tree)],
            ["runtime.py", "--base", base],
            ["runtime.py", "--random", "openelm-270m"],
            ["training.py", "--base", base],
            ["swap.py", "--base", base],
            ["privacy.py", "--base", base],
            ["secure_sum.py"],
            ["robust.py"],
            ["tuned.py", base, f"{folder}/tuned", "lora"],
            ["delta_curves.py"],
            ["apply_memory.py"],
            ["ota.py", "--factors", f"{folder}/tuned/adapter-40.F32", f"{folder}/tuned/adapter-45.F32"],
            ["service.py"],
            ["rollout.py"],
        ]
        if options.text:
            questions = [part for path in options.choices for part in ("--choices", str(path))]
            scripts.append(["quantization.py", "--base", base, "--text", str(options.text), *questions, "--off-grid"])
        if options.mutations:
            scripts.append(["fuzz.py", "--mutations", str(options.mutations)])
        for script in scripts:
            print(f"\n== {' '.join(script)}", flush=True)
            done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / script[0]), *script[1:]], check=False)
            if done.returncode != 0:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
