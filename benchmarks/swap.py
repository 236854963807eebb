"""What an application notices of an update that it generates through: the pause of a hot swap.

    python benchmarks/swap.py --base FOLDER

Two versions of one base with different adapters are installed in turn, while a thread asks for one-token answers
without a break. The pause is by how much the slowest request around a switch exceeds the median request of quiet times.
Beside it: what opening the version anew takes, which is what a program without a hot swap waits for.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

PROMPT = "The weather in the mountains changes"


def main() -> int:
    """Measure both back ends and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="checkpoint folder, such as SmolLM2's")
    parser.add_argument("--swaps", type=int, default=6, help="switches a back end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        trees = _versions(options.base, Path(folder))
        for backend in ("llamacpp", "torch"):
            home = Path(folder) / backend
            row = _measure(backend, trees, home, options.swaps)
            rows.append({"backend": backend, **row, "anew_ms": _open_anew(backend, trees, home)})
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    print("| back end | median request | slowest around a switch | pause | opening anew |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['backend']} | {row['median_ms']:.1f} ms | {row['slowest_ms']:.1f} ms "
            f"(median of {options.swaps} switches {row['around_ms']:.1f}) "
            f"| **{row['pause_ms']:.1f} ms** | {row['anew_ms']:.0f} ms |"
        )
    return 0


def _versions(base: Path, folder: Path) -> list[Path]:
    """Two versions on one base, which they share by links."""
    import torch  # noqa: PLC0415 - seconds, after --help

    from model import LoRAConfig, initial_adapter, save_adapter  # noqa: PLC0415 - as above
    from model.config import ModelConfig  # noqa: PLC0415 - as above

    config = ModelConfig.from_json((base / "config.json").read_text())
    lora = LoRAConfig(rank=8, alpha=16.0)
    trees = []
    for seed in (1, 2):
        tree = folder / f"v{seed}"
        (tree / "base").mkdir(parents=True)
        for path in base.iterdir():
            (tree / "base" / path.name).symlink_to(path.resolve())
        generator = torch.Generator().manual_seed(seed)
        state = initial_adapter(config, lora, seed)
        for name, value in state.items():
            state[name] = value + 0.01 * torch.randn(value.shape, generator=generator)
        save_adapter(tree / "adapter", state, lora)
        trees.append(tree)
    return trees


class _Slots:
    """Stands in for the slots on the disk: what is measured is the runtime, not the update."""

    def __init__(self, trees: list[Path]) -> None:
        from client_sdk.slots import SlotRecord  # noqa: PLC0415 - after --help

        self._trees = trees
        self._record = lambda number: SlotRecord(
            slot="ab"[number % 2],
            model="chat",
            version=number + 1,
            tree_hash=str(number) * 64,
            base_hash="0" * 64,
            offer_id=str(number),
        )
        self.number = 0

    def pointer(self) -> object:
        from client_sdk.slots import Pointer  # noqa: PLC0415 - after --help

        return Pointer(generation=self.number, confirmed=self._record(self.number))

    def active(self) -> object:
        from types import SimpleNamespace  # noqa: PLC0415 - after --help

        from client_sdk.slots import ActiveVersion  # noqa: PLC0415 - after --help

        return ActiveVersion(self._trees[self.number % 2], SimpleNamespace(base_hash="0" * 64))  # type: ignore[arg-type]


def _measure(backend: str, trees: list[Path], home: Path, swaps: int) -> dict[str, float]:
    from client_sdk import EngineSettings  # noqa: PLC0415 - after --help
    from client_sdk.runtime import Runtime  # noqa: PLC0415 - as above

    slots = _Slots(trees)
    settings = EngineSettings(backend=backend)  # type: ignore[arg-type]
    runtime = Runtime(slots, derived=home, settings=settings)  # type: ignore[arg-type]
    runtime.answer(PROMPT, max_new_tokens=1)  # makes the GGUF files
    requests: list[tuple[float, float]] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            started = time.perf_counter()
            runtime.answer(PROMPT, max_new_tokens=1)
            requests.append((started, time.perf_counter()))

    asking = threading.Thread(target=ask)
    asking.start()
    windows = []
    for _ in range(swaps):
        time.sleep(1.0)
        started = time.perf_counter()
        slots.number += 1
        runtime.refresh()
        time.sleep(0.2)
        windows.append((started, time.perf_counter()))
    is_over.set()
    asking.join()
    around = [max(end - start for start, end in requests if end > first and start < last) for first, last in windows]
    quiet = [end - start for start, end in requests if all(end < first or start > last for first, last in windows)]
    median = statistics.median(quiet)
    slowest = max(around)
    return {
        "median_ms": 1e3 * median,
        "around_ms": 1e3 * statistics.median(around),
        "slowest_ms": 1e3 * slowest,
        "pause_ms": 1e3 * (statistics.median(around) - median),
        "worst_pause_ms": 1e3 * (slowest - median),
    }


def _open_anew(backend: str, trees: list[Path], home: Path) -> float:
    """Milliseconds from nothing to the first token."""
    from client_sdk import EngineSettings  # noqa: PLC0415 - after --help
    from client_sdk.runtime import Runtime  # noqa: PLC0415 - as above

    settings = EngineSettings(backend=backend)  # type: ignore[arg-type]
    started = time.perf_counter()
    Runtime(_Slots(trees), derived=home, settings=settings).answer(PROMPT, max_new_tokens=1)  # type: ignore[arg-type]
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
