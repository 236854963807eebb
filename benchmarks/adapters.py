"""Measure adapter releases in float32, float16, int8 and int4: bytes of every update, and what the rounding costs.

    python benchmarks/adapters.py --base FOLDER [--states FOLDER] [--formats PATTERN] [--picture FILE] [--json]

`--base` is a version that holds base/, SmolLM2-135M in fp16. Each format is a chain of releases of its own: training
(LoRA of rank 8 on all linear layers, AdamW, real chat) starts from what devices have, the dequantised release; every
`--steps` steps the server adds what rounding had left behind, rounds, and releases, with the code of `lamella release`.
"no feedback" chains leave that out. `--states` keeps trained chains and losses, so that the run may be cut in pieces.

Packages are those of `build_package` between trees that hold the adapter alone: base files, which never change, would
add a line to the header. The loss is the mean over held-out people's examples; differences are paired, example by
example, with the float32 chain after the same steps. Base weights compute in bfloat16, adapters in float32.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chart import Panel, draw, picture_path

from delta_updates import build_package

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Losses = NDArray[np.float64]

_RANK, _ALPHA, _RATE, _BATCH, _TOKENS, _SEED = 8, 16, 3e-4, 4, 64, 0
_PEOPLE, _EXAMPLES_EACH = 64, 40
_SURE = 1.96  # standard errors on either side of a mean: 95 %


@dataclass(frozen=True)
class Format:
    """One chain: how a release is stored, and whether what rounding leaves behind is kept for the next."""

    name: str
    stored: str
    has_feedback: bool = True


FORMATS = (
    Format("float32", "float32", has_feedback=False),
    Format("float16", "float16"),
    Format("int8", "int8"),
    Format("int8 no feedback", "int8", has_feedback=False),
    Format("int4", "int4"),
    Format("int4 no feedback", "int4", has_feedback=False),
)


@dataclass(frozen=True)
class Row:
    """What one format's chain came to.

    Attributes:
        name: The format.
        full_bytes: The last release without a source.
        delta_bytes: From each release to the next.
        distance_bytes: To the last release from the one before, the second before ...
        losses: Held-out loss of each measured release, by its number.
        worse: By how much it is above the float32 chain's, paired.
        margin: 95 % of that difference.
        rounding: By how much the last release is above its own master, and 95 % of it: what rounding alone costs.
    """

    name: str
    full_bytes: int
    delta_bytes: tuple[int, ...]
    distance_bytes: tuple[int, ...]
    losses: dict[int, float]
    worse: dict[int, float]
    margin: dict[int, float]
    rounding: tuple[float, float]


class Bench:
    """The model, its text and the folder of trained states; each is made when it is first needed."""

    def __init__(self, base: Path, states: Path, *, steps: int, releases: int, examples: int, source: str) -> None:
        self._base, self._steps, self.releases = base, steps, releases
        self._examples, self._source = examples, source
        self._states = states / f"{source}-{steps}-steps"

    def tree(self, form: Format, release: int) -> Path:
        """The folder that holds a release's adapter; trained now, with those before it, if it is not there."""
        tree = self._states / form.name.replace(" ", "-") / f"v{release}"
        if not (tree / "adapter" / "adapter_config.json").exists():
            self._train(form)
        return tree

    def losses(self, form: Format, release: int, *, stage: str = "adapter") -> "Losses":
        """Loss of each held-out example, (examples,), with a release's `adapter` or its unrounded `master`."""
        kept = self.tree(form, release) / f"{stage}-{self._examples}.npy"
        if not kept.exists():
            from model import example_losses, load_adapter, load_adapter_state  # noqa: PLC0415 - as below

            state, _ = load_adapter(self.tree(form, release) / stage)
            load_adapter_state(self._model, state)
            np.save(kept, example_losses(self._model, self._held_out, batch_size=32))
            _say(f"{form.name}: {stage} of release {release}, held-out loss {np.load(kept).mean():.4f}")
        losses: Losses = np.load(kept)
        return losses

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401 - of a package that is imported late
        from model import Tokenizer  # noqa: PLC0415 - heavy, and not needed when all is kept

        return Tokenizer.from_folder(self._base)

    @cached_property
    def _held_out(self) -> list[Any]:
        from model import encode_examples, held_out_examples, open_source  # noqa: PLC0415 - as above

        examples = held_out_examples(open_source(self._source), limit=self._examples)
        return encode_examples(self._tokenizer, examples, max_length=_TOKENS)

    @cached_property
    def _batches(self) -> list[list[Any]]:
        """The same batches for every chain."""
        from model import encode_examples, open_source, training_part  # noqa: PLC0415 - as above

        source = open_source(self._source)
        examples = [
            example
            for person in source.users()[:_PEOPLE]
            for example in training_part(source.examples(person), max_examples=_EXAMPLES_EACH)
        ]
        order = np.random.default_rng(_SEED).permutation(len(examples))
        needed = [examples[at] for at in np.resize(order, self._steps * self.releases * _BATCH)]
        encoded = encode_examples(self._tokenizer, needed, max_length=_TOKENS)
        return [encoded[start : start + _BATCH] for start in range(0, len(encoded), _BATCH)]

    @cached_property
    def _lora(self) -> Any:  # noqa: ANN401 - as above
        from model import PROJECTIONS, LoRAConfig  # noqa: PLC0415 - as above

        return LoRAConfig(rank=_RANK, alpha=_ALPHA, targets=PROJECTIONS)

    @cached_property
    def _model(self) -> Any:  # noqa: ANN401 - as above
        import torch  # noqa: PLC0415 - as above

        from model import add_lora, load_checkpoint  # noqa: PLC0415 - as above

        model = load_checkpoint(self._base, dtype=torch.bfloat16)
        add_lora(model, self._lora, seed=_SEED, dtype=torch.float32)
        return model.eval()

    def _train(self, form: Format) -> None:
        """Make a chain's releases, each from the one before as devices have it."""
        import torch  # noqa: PLC0415 - as above

        from model import adapter_state_dict, initial_adapter, load_adapter_state  # noqa: PLC0415 - as above
        from model.training import StepCost, lean_sequence_losses  # noqa: PLC0415 - as above

        model, cost, started = self._model, StepCost(precision="bfloat16"), time.monotonic()
        load_adapter_state(model, initial_adapter(model.config, self._lora, _SEED))
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=_RATE, weight_decay=0.0, fused=True)
        chain = Releases(form, self._lora)
        for step, batch in enumerate(self._batches, start=1):
            optimizer.zero_grad(set_to_none=True)
            lean_sequence_losses(model, batch, cost=cost).mean().backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            if step % self._steps == 0:
                number = step // self._steps
                folder = self._states / form.name.replace(" ", "-") / f"v{number}" / "adapter"
                trained = {name: tensor.numpy().copy() for name, tensor in adapter_state_dict(model).items()}
                floats = chain.release(trained, folder)
                load_adapter_state(model, {name: torch.from_numpy(values) for name, values in floats.items()})
        _say(f"{form.name}: {len(self._batches)} steps in {time.monotonic() - started:.0f} s")


class Releases:
    """The server's side of one chain."""

    def __init__(self, form: Format, lora: Any) -> None:  # noqa: ANN401 - as above
        self._form, self._lora, self._parent = form, lora, None

    def release(self, trained: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write a release and return what devices compute with."""
        import torch  # noqa: PLC0415 - as above

        from model import load_adapter, load_quantized_adapter, save_adapter  # noqa: PLC0415 - as above
        from server.federation.adapter import ParentRelease, master_of, write_release  # noqa: PLC0415 - as above

        master = master_of(trained, self._parent)
        tensors = {name: torch.from_numpy(values) for name, values in master.items()}
        save_adapter(folder.with_name("master"), tensors, self._lora, dtype=torch.float32)
        if self._form.stored == "float32":
            save_adapter(folder, tensors, self._lora, dtype=torch.float32)
        else:
            write_release(folder, master, self._lora, form=self._form.stored, parent=self._parent)
        state, _ = load_adapter(folder)
        floats = {name: tensor.float().numpy() for name, tensor in state.items()}
        left = {name: master[name] - values for name, values in floats.items()} if self._form.has_feedback else {}
        self._parent = ParentRelease(floats, load_quantized_adapter(folder), left)
        return floats


def measure(bench: Bench, form: Format, measured: Sequence[int]) -> Row:
    """Build the packages of a chain and hold its losses against the float32 chain's."""
    trees = [bench.tree(form, number) for number in range(1, bench.releases + 1)]
    differences = {number: bench.losses(form, number) - bench.losses(FORMATS[0], number) for number in measured}
    last = bench.releases
    unrounded = "adapter" if form.stored == "float32" else "master"
    rounding = bench.losses(form, last) - bench.losses(form, last, stage=unrounded)
    return Row(
        form.name,
        _package_bytes(None, trees[-1]),
        tuple(_package_bytes(old, new) for old, new in pairwise(trees)),
        tuple(_package_bytes(old, trees[-1]) for old in reversed(trees[:-1])),
        {number: float(bench.losses(form, number).mean()) for number in measured},
        {number: float(values.mean()) for number, values in differences.items()},
        {number: _margin(values) for number, values in differences.items()},
        (float(rounding.mean()), _margin(rounding)),
    )


def _margin(differences: "Losses") -> float:
    return float(_SURE * differences.std(ddof=1) / len(differences) ** 0.5)


def _package_bytes(old: Path | None, new: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        source = None if old is None else old / "adapter"
        return build_package(source, new / "adapter", Path(folder) / "package").package_bytes


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def lines(rows: Sequence[Row], model_bytes: int) -> Iterator[str]:
    """The tables, as Markdown."""
    measured = list(rows[0].losses)
    yield (
        "| release | full MB | update MB | of the fp16 model | largest | held-out loss | above float32 | "
        "above its own master |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        mean, last = float(np.mean(row.delta_bytes)), measured[-1]
        above = _shown(row.worse[last], row.margin[last])
        yield (
            f"| {row.name} | {row.full_bytes / 1e6:.3f} | {mean / 1e6:.3f} | {mean / model_bytes:.3%} | "
            f"{max(row.delta_bytes) / model_bytes:.3%} | {row.losses[last]:.4f} | {above} | "
            f"{_shown(*row.rounding)} |"
        )
    yield ""
    yield "Above float32 after each release, in nats: | " + " | ".join(f"v{number}" for number in measured)
    for row in rows[1:]:
        yield f"{row.name} | " + " | ".join(_shown(row.worse[at], row.margin[at]) for at in measured)
    for title, pick in (
        ("From v(n-1) to vn", "delta_bytes"),
        ("To the last version from so many before", "distance_bytes"),
    ):
        yield ""
        first = 2 if pick == "delta_bytes" else 1
        yield f"{title}, % of the fp16 model: | " + " | ".join(
            str(first + at) for at in range(len(rows[0].delta_bytes))
        )
        for row in rows:
            yield f"{row.name} | " + " | ".join(f"{size / model_bytes:.3%}" for size in getattr(row, pick))


def _shown(difference: float, margin: float) -> str:
    return f"{difference:+.4f} ± {margin:.4f}" if margin else "-"


def panels(rows: Sequence[Row], model_bytes: int) -> list[Panel]:
    """Sizes and losses, side by side."""
    last = list(rows[0].losses)[-1]
    return [
        Panel(
            "update, % of the fp16 model (less is better)",
            {row.name: 100 * float(np.mean(row.delta_bytes)) / model_bytes for row in rows},
            "{:.2f}",
        ),
        Panel("held-out loss after the last release", {row.name: row.losses[last] for row in rows}, "{:.4f}"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a version that holds base/, SmolLM2-135M in fp16")
    parser.add_argument("--states", type=Path, help="where trained chains and losses are kept")
    parser.add_argument("--formats", default="", help="only formats whose name has this pattern, and float32")
    parser.add_argument("--steps", type=int, default=10, help="training steps from one release to the next")
    parser.add_argument("--releases", type=int, default=6, help="releases of each chain")
    parser.add_argument("--examples", type=int, default=256, help="held-out examples")
    parser.add_argument("--source", default="chitchat", help="text: chitchat, docstrings or jsonl:FOLDER")
    parser.add_argument("--picture", type=picture_path, help="draw sizes and losses into this .svg or .png file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    base = options.base / "base"
    model_bytes = (base / "model.safetensors").stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            base,
            options.states or Path(folder),
            steps=options.steps,
            releases=options.releases,
            examples=options.examples,
            source=options.source,
        )
        measured = sorted({(options.releases + 1) // 2, options.releases})
        chosen = [form for form in FORMATS if form is FORMATS[0] or re.search(options.formats, form.name)]
        rows = [measure(bench, form, measured) for form in chosen]
    if options.picture:
        draw(panels(rows, model_bytes), title="Adapter releases", ours=["int8", "int4"], path=options.picture)
    print(json.dumps([asdict(row) for row in rows], indent=2) if options.json else "\n".join(lines(rows, model_bytes)))


if __name__ == "__main__":
    main()
