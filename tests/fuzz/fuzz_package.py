"""Look for packages that do harm, led by coverage: needs `atheris` (Linux and macOS, libFuzzer inside).

    python tests/fuzz/fuzz_package.py [FOLDER FOR WHAT IT FINDS] [-max_total_time=60] [-runs=100000]

The same checks as `benchmarks/fuzz.py`, which needs nothing and whose mutations are used here too: bytes alone would
never get past the first hash.
"""

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "benchmarks")]

with atheris.instrument_imports(include=["delta_updates"]):
    import delta_updates  # noqa: F401 - what is measured

from fuzz import Sandbox, sandbox  # noqa: E402 - beside this, once the path knows it
from package_mutations import mutated  # noqa: E402 - the same


def main() -> None:
    """Fuzz until told to stop; what libFuzzer finds it writes to the current folder."""
    with sandbox(seed=0) as box:
        corpus = _with_good_packages(box)

        def mutator(raw: bytes, most: int, seed: int) -> bytes:
            try:
                made = mutated([raw], seed, seed=0)
            except Exception:  # noqa: BLE001 - what can no longer be taken apart
                made = mutated(corpus, seed, seed=0)
            return made if len(made) <= most else raw

        def check(raw: bytes) -> None:
            for in_place in (False, True):
                box.run_bytes(raw, in_place=in_place)

        atheris.Setup([*sys.argv, "-max_len=65536"], check, custom_mutator=mutator)
        atheris.Fuzz()


def _with_good_packages(box: Sandbox) -> list[bytes]:
    """Write the packages that it starts from to the first folder that was named."""
    for folder in (Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")):
        folder.mkdir(parents=True, exist_ok=True)
        for number, raw in enumerate(box.packages):
            (folder / f"good-{number}").write_bytes(raw)
        break
    return box.packages


if __name__ == "__main__":
    main()
