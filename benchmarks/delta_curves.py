"""How the size of a package grows with training steps, and with how far apart two versions are.

    python benchmarks/delta_curves.py [--base FOLDER] [--versions FOLDER] [--picture FILE] [--json]

SmolLM2-135M is trained by `tuned.py` and kept after 1, 2, 5, 10, 20 and 40 steps. Each version is packaged from the
base, and from the version kept before it; the conditional entropy of the steps stands beside it. `--base` is a version
that holds base/ in fp16; without it the model comes from the installed package.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from chart import picture_path  # noqa: E402 - beside this, once the path knows it
from deltas import conditional_entropy, measure_ours  # noqa: E402 - the same
from runtime import prepare  # noqa: E402 - the same

STEPS = (1, 2, 5, 10, 20, 40)
METHODS = {"adamw": "AdamW", "lora": "LoRA, merged", "sgd": "SGD"}
_STEM = {"adamw": "adamw", "lora": "merged", "sgd": "sgd"}
DTYPES = {"F16": "fp16", "BF16": "bf16"}
_TICKS = (0.3, 1, 3, 10)


@dataclass(frozen=True)
class Point:
    """A package: from the version after ``since`` steps (0: the base) to that after ``steps``; shares of the model."""

    method: str
    dtype: str
    since: int
    steps: int
    share: float
    entropy_share: float


def points(versions: Path) -> Iterator[Point]:
    """Measure what lies in `versions`: each version from the base, and from the one before it."""
    for method, dtype in ((method, dtype) for method in METHODS for dtype in DTYPES):
        for before, steps in zip((0, *STEPS), STEPS, strict=False):
            for since in sorted({0, before}):
                names = "base" if since == 0 else f"{_STEM[method]}-{since}", f"{_STEM[method]}-{steps}"
                old, new = ((versions / f"{name}.{dtype}").read_bytes() for name in names)
                entropy = conditional_entropy(old, new)
                row = measure_ours(f"{method} {since} > {steps}", old, new, entropy)
                print(f"{method} {dtype} {since} > {steps}: {row.ratio:.4%}", file=sys.stderr, flush=True)
                yield Point(method, DTYPES[dtype], since, steps, row.ratio, entropy / len(new))


def lines(found: Sequence[Point]) -> Iterator[str]:
    """The table for people: a line a curve, a column a number of steps."""
    yield "| training | from | " + " | ".join(f"{steps}" for steps in STEPS) + " |"
    yield "|---|---|" + "---|" * len(STEPS)
    for method, dtype in ((method, dtype) for method in METHODS for dtype in DTYPES.values()):
        mine = [point for point in found if (point.method, point.dtype) == (method, dtype)]
        from_base = {point.steps: point for point in mine if point.since == 0}
        onward = {point.steps: point for point in mine if point.since or point.steps == STEPS[0]}
        for label, by_steps in (("the base", from_base), ("the version before", onward)):
            told = " | ".join(
                f"{by_steps[steps].share:.2%} ({by_steps[steps].share / by_steps[steps].entropy_share:.2f})"
                for steps in STEPS
            )
            yield f"| {METHODS[method]}, {dtype} | {label} | {told} |"


def draw(found: Sequence[Point], path: Path) -> None:
    """Draw size over steps: one panel a dtype; dashed from the version before, faint the entropy."""
    import matplotlib as mpl  # noqa: PLC0415 - only who asks for a picture needs it
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    from server.cli.plan_picture import STYLE  # noqa: PLC0415 - as above

    colours = dict(zip(METHODS, ("#1f5f99", "#c2571a", "#4b8b3b"), strict=True))
    with mpl.rc_context(STYLE | {"svg.hashsalt": "benchmark"}):  # type: ignore[arg-type]  # its keys are literals
        figure = Figure(figsize=(10.5, 4.2), layout="constrained", dpi=120, facecolor="white")
        figure.suptitle("Package of SmolLM2-135M, share of the model, after so many training steps", x=0.01, ha="left")
        for axes, dtype in zip(figure.subplots(1, 2, sharey=True), DTYPES.values(), strict=True):
            for method, name in METHODS.items():
                mine = [point for point in found if (point.method, point.dtype) == (method, dtype)]
                for is_onward, style in ((False, "-"), (True, "--")):
                    chosen = [point for point in mine if point.since == 0 or is_onward]
                    chosen = [one for one in chosen if (one.since > 0) == is_onward]
                    axes.plot(
                        [one.steps for one in chosen],
                        [100 * one.share for one in chosen],
                        style,
                        color=colours[method],
                        marker="o",
                        markersize=3.5,
                        label=f"{name}, from the version before" if is_onward else f"{name}, from the base",
                    )
                entropy = [point for point in mine if point.since == 0]
                axes.plot(
                    [one.steps for one in entropy],
                    [100 * one.entropy_share for one in entropy],
                    ":",
                    color=colours[method],
                    alpha=0.6,
                    label=f"{name}, entropy of its steps",
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
            axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
            axes.minorticks_off()
            axes.set_title(dtype, loc="left", fontsize=10)
            axes.set_xlabel("training steps")
            axes.set_ylabel("% of the model")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None})


def main() -> None:
    """Train what is missing, measure, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a version that holds base/, SmolLM2-135M in fp16")
    parser.add_argument("--versions", type=Path, help="where trained versions are kept (10 GB)")
    parser.add_argument("--picture", type=picture_path, help="draw the curves into this .svg or .png file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        versions = options.versions or Path(scratch) / "versions"
        base = options.base / "base" if options.base else prepare(None, None, Path(scratch))
        for method, stem in _STEM.items():
            if not (versions / f"{stem}-{STEPS[-1]}.BF16").exists():
                command = [sys.executable, str(ROOT / "benchmarks" / "tuned.py"), str(base), str(versions), method]
                subprocess.run([*command, "--steps", *map(str, STEPS)], check=True, stdout=sys.stderr)
        found = list(points(versions))
    if options.picture:
        draw(found, options.picture)
    print(json.dumps([asdict(point) for point in found], indent=2) if options.json else "\n".join(lines(found)))


if __name__ == "__main__":
    main()
