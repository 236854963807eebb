"""Measure what differential privacy adds to a LoRA training step on a device: CPU time and peak memory.

    python benchmarks/privacy.py [--base FOLDER] [--batch 8x64] [--steps 5] [--contender direct] [--json]

Rank 8 on all linear layers of SmolLM2-135M and of a model of 20 million weights; SGD with momentum, as on a device;
every example is drawn in every step. `plain` is the step without privacy by the product's own backward pass, `plain,
autograd` the same by the ordinary one. `direct`, `loop` and `hooks` are `privacy.dp_sgd` as devices run it, noise from
the kernel's generator included; `ghost` and `functorch` are Opacus' other two ways. Every contender is a process of its
own, so that its memory is its own; they take turns, one step each, so that a busy machine is busy for all of them.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from memory import peak_megabytes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_RANK, _ALPHA, _LEARNING_RATE, _SEED = 8, 16, 0.02, 0
_NOISE, _CLIPPING_NORM = 1.0, 1.0
_CONTENDERS = ("plain", "plain, autograd", "direct", "loop", "hooks", "functorch", "ghost")
_LEAN = ("plain", "direct", "loop")
Turn = Callable[[], None]


@dataclass(frozen=True)
class Task:
    """What a contender is asked to do; without a `base` it trains the model of 20 million weights."""

    name: str
    base: str
    examples: int
    tokens: int
    steps: int
    threads: int
    precision: str


@dataclass(frozen=True)
class Row:
    """One contender: CPU seconds a step (median, and least), MB (10^6 bytes) at its peak, and both over `plain`.

    `time_ratio` is the median of the ratios of steps that were taken one after the other: what else the machine did
    meanwhile touched both.
    """

    model: str
    batch: str
    precision: str
    contender: str
    step_s: float
    best_step_s: float
    peak_mb: float
    import_mb: float
    time_ratio: float
    memory_ratio: float


def adapted(task: Task) -> Any:  # noqa: ANN401 - a model; workers load torch, the parent does not
    """The model with its adapter, in train mode."""
    import torch  # noqa: PLC0415 - workers load only what they measure

    from model import PROJECTIONS, LayeredTransformer, LoRAConfig, ModelConfig, add_lora, load_checkpoint  # noqa: PLC0415

    if task.base:
        model = load_checkpoint(Path(task.base), dtype=torch.float32)
    else:
        torch.manual_seed(_SEED)
        layers = 8
        model = LayeredTransformer(
            ModelConfig(
                vocab_size=8192,
                model_dim=384,
                head_dim=64,
                query_heads=(6,) * layers,
                kv_heads=(3,) * layers,
                ffn_dims=(1152,) * layers,
                max_context=256,
            )
        )
    add_lora(model, LoRAConfig(rank=_RANK, alpha=_ALPHA, targets=PROJECTIONS), seed=_SEED, dtype=torch.float32)
    return model.train()


def batch_of(task: Task, vocabulary: int) -> list[Any]:
    """Examples of random tokens: what they say changes no cost."""
    import torch  # noqa: PLC0415 - as above

    from model import EncodedExample  # noqa: PLC0415 - as above

    draws = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(vocabulary, (task.examples, task.tokens + 1), generator=draws)
    rows = [tuple(row) for row in ids.tolist()]
    return [EncodedExample(row, 1) for row in rows]


def losses_of(task: Task, *, per_example: bool) -> Callable[[Any, Any], Any]:
    """Per-example losses, by the product's own backward pass or the ordinary one."""
    from functools import partial  # noqa: PLC0415 - as above

    from model import sequence_losses  # noqa: PLC0415 - as above
    from model.training import StepCost, lean_sequence_losses  # noqa: PLC0415 - as above

    if task.name not in _LEAN:
        return sequence_losses
    return partial(lean_sequence_losses, cost=StepCost(precision=cast("Any", task.precision)), per_example=per_example)


def run_plain(task: Task, model: Any, batch: list[Any], turn: Turn) -> None:  # noqa: ANN401 - see `adapted`
    """Steps without privacy."""
    import torch  # noqa: PLC0415 - as above

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=_LEARNING_RATE, momentum=0.9)
    losses = losses_of(task, per_example=False)
    for _ in range(task.steps):
        optimizer.zero_grad(set_to_none=True)
        losses(model, batch).mean().backward()
        optimizer.step()
        turn()


def run_private(task: Task, model: Any, batch: list[Any], turn: Turn) -> None:  # noqa: ANN401 - see `adapted`
    """Steps as a device takes them in a round."""
    import torch  # noqa: PLC0415 - as above

    from privacy.dp_sgd import DPSGDParameters, Gradients, train_dp_sgd  # noqa: PLC0415 - as above

    ways: dict[str, Gradients] = {"direct": "own", "loop": "loop", "hooks": "hooks"}
    train_dp_sgd(
        model,
        batch,
        loss_of=losses_of(task, per_example=task.name == "direct"),
        optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=_LEARNING_RATE, momentum=0.9),
        parameters=DPSGDParameters(
            noise_multiplier=_NOISE,
            clipping_norm=_CLIPPING_NORM,
            sampling_probability=1.0,
            steps=task.steps,
            expected_batch_size=task.examples,
        ),
        max_physical_batch=task.examples,
        gradients=ways[task.name],
        on_step=lambda _done, _steps: turn(),
    )


def run_opacus(task: Task, model: Any, batch: list[Any], turn: Turn) -> None:  # noqa: ANN401 - see `adapted`
    """Steps by Opacus alone, with torch's noise: its vectorised gradients, or ghost clipping in two backward passes."""
    import torch  # noqa: PLC0415 - as above
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping  # noqa: PLC0415 - as above
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping  # noqa: PLC0415 - as above

    trainable = [p for p in model.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(trainable, lr=_LEARNING_RATE, momentum=0.9)
    facts = {"noise_multiplier": _NOISE, "max_grad_norm": _CLIPPING_NORM, "expected_batch_size": task.examples}
    losses = losses_of(task, per_example=False)
    if task.name == "functorch":
        hooked = GradSampleModule(model, loss_reduction="sum", force_functorch=True, strict=False)
        optimizer = DPOptimizer(sgd, **facts)
    else:
        hooked = GradSampleModuleFastGradientClipping(
            model, loss_reduction="sum", max_grad_norm=_CLIPPING_NORM, use_ghost_clipping=True, strict=False
        )
        optimizer = DPOptimizerFastGradientClipping(sgd, **facts)
    for _ in range(task.steps):
        optimizer.zero_grad(set_to_none=True)
        each = losses(model, batch)
        each.sum().backward(retain_graph=task.name == "ghost")
        if task.name == "ghost":
            optimizer.zero_grad(set_to_none=True)
            clipped = (hooked.get_clipping_coef() * each).sum()
            hooked.disable_hooks()
            clipped.backward()
            hooked.enable_hooks()
        optimizer.step()
        turn()


def work(task: Task) -> None:
    """Be a contender: one step for each line on standard input, and at its end the memory it took."""
    import torch  # noqa: PLC0415 - as above

    for name in ("model.training", "privacy.dp_sgd"):  # the same for every contender
        importlib.import_module(name)
    torch.set_num_threads(task.threads)
    imports = peak_megabytes()
    module = adapted(task)
    batch = batch_of(task, module.config.vocab_size)
    run = {"plain": run_plain, "functorch": run_opacus, "ghost": run_opacus}.get(task.name.split(",")[0], run_private)
    tell({"ready": True})
    sys.stdin.readline()
    started = time.process_time()

    def turn() -> None:
        nonlocal started
        tell({"seconds": time.process_time() - started})
        sys.stdin.readline()
        started = time.process_time()

    run(task, module, batch, turn)
    tell({"peak_mb": peak_megabytes(), "import_mb": imports})


def tell(value: dict[str, Any]) -> None:
    """Write a line to the process that asked."""
    print(json.dumps(value), flush=True)


class Contender:
    """A process that takes a step when asked."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.seconds: list[float] = []
        command = [sys.executable, "-W", "ignore", __file__, "--work", json.dumps(asdict(task))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def step(self) -> None:
        """Take one step."""
        self._ask()
        self.seconds.append(self._answer()["seconds"])

    def end(self) -> dict[str, float]:
        """What memory it took; it is gone then."""
        self._ask()
        memory = self._answer()
        self._process.wait()
        return memory

    def _ask(self) -> None:
        cast("IO[str]", self._process.stdin).write("step\n")
        cast("IO[str]", self._process.stdin).flush()

    def _answer(self) -> dict[str, float]:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{self.task.name} ended early; its error is above")
        return cast("dict[str, float]", json.loads(line))


def measure(tasks: list[Task], *, shown: str) -> list[Row]:
    """All contenders in turns; the first is what the others are compared with. The first step warms up."""
    contenders = [Contender(task) for task in tasks]
    for _ in range(tasks[0].steps):
        for contender in contenders:
            contender.step()
    memories = [contender.end() for contender in contenders]
    plain = contenders[0].seconds[1:]
    return [
        Row(
            model=shown,
            batch=f"{contender.task.examples}x{contender.task.tokens}",
            precision=contender.task.precision if contender.task.name in _LEAN else "float32",
            contender=contender.task.name,
            step_s=statistics.median(contender.seconds[1:]),
            best_step_s=min(contender.seconds[1:]),
            peak_mb=memory["peak_mb"],
            import_mb=memory["import_mb"],
            time_ratio=statistics.median(
                own / reference for own, reference in zip(contender.seconds[1:], plain, strict=True)
            ),
            memory_ratio=memory["peak_mb"] / memories[0]["peak_mb"],
        )
        for contender, memory in zip(contenders, memories, strict=True)
    ]


def show(rows: list[Row]) -> None:
    """Print a Markdown table."""
    print("| model | batch | precision | contender | CPU s/step | best | over plain | peak MB | over plain |")
    print("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r.model} | {r.batch} | {r.precision} | {r.contender} | {r.step_s:.2f} | {r.best_step_s:.2f} "
            f"| {r.time_ratio:.2f} | {r.peak_mb:.0f} | {r.memory_ratio:.2f} |"
        )


def main() -> int:
    """Measure what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a converted SmolLM2 (config.json, model.safetensors, tokenizer)")
    parser.add_argument("--batch", default="8x64", help="EXAMPLESxTOKENS of SmolLM2; the smaller model gets 8x128")
    parser.add_argument("--model", choices=["smollm2", "20m"], action="append", help="only this one")
    parser.add_argument("--contender", choices=_CONTENDERS[1:], action="append", help="only these beside plain")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of our own passes")
    parser.add_argument("--steps", type=int, default=5, help="steps that count, after one that warms up")
    parser.add_argument("--threads", type=int, default=1, help="of each contender")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Task(**json.loads(options.work)))
        return 0
    rows: list[Row] = []
    names = ("plain", *(options.contender or _CONTENDERS[1:]))
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        for shown in options.model or ["smollm2", "20m"]:
            base = "" if shown == "20m" else str(options.base or converted(Path(folder) / "base"))
            examples, tokens = map(int, (options.batch if base else "8x128").split("x"))
            common = (base, examples, tokens, options.steps + 1, options.threads, options.precision)
            rows += measure([Task(name, *common) for name in names], shown=shown)
    if options.json:
        print(json.dumps([asdict(r) for r in rows], indent=2))
    else:
        show(rows)
    return 0


def converted(folder: Path) -> Path:
    """SmolLM2 from the installed package, converted."""
    from model import find_smollm2, import_gguf  # noqa: PLC0415 - as above

    import_gguf(find_smollm2(), folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
