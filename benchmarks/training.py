"""Measure a LoRA training step against transformers + PEFT: same weights, same batch, same optimiser.

    python benchmarks/training.py [--base FOLDER] [--batch 4x128] [--steps 7] [--prompt 0.0] [--json]

Rank 8 on all linear layers of SmolLM2-135M, AdamW, gradient norm clipped at 1. Every contender is a process of its own,
so that its peak memory is its own; they take turns, one step each, so that a busy machine is busy for all of them. The
batch is this repository's documentation, and its loss counts every token, or those after the first `--prompt` share.
`--precision` chooses float32 or bfloat16 (PEFT then under autocast); without it both are measured.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from chart import Panel, draw, picture_path
from memory import peak_megabytes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_RANK, _ALPHA, _LEARNING_RATE, _SEED = 8, 16, 3e-4, 0
_PEFT = {"float32": ("peft",), "bfloat16": ("peft",)}
_OURS = {"float32": ("lean", "lean, blocks", "plain"), "bfloat16": ("lean", "lean, blocks", "lean, bfloat16 base")}
Step = Callable[[], float]


@dataclass(frozen=True)
class Task:
    """What a contender is asked to do."""

    name: str
    precision: str
    base: str
    examples: int
    tokens: int
    prompt: float
    threads: int


@dataclass(frozen=True)
class Row:
    """One contender: seconds a step (median and least), MB (10^6 bytes) at its peak, and both against PEFT."""

    batch: str
    precision: str
    threads: int
    contender: str
    step_s: float
    best_step_s: float
    peak_mb: float
    import_mb: float
    time_ratio: float
    memory_ratio: float
    memory_ratio_without_imports: float
    loss_difference: float


def token_rows(task: Task) -> list[list[int]]:
    """Rows of `tokens` + 1 ids of this repository's documentation."""
    from model.tokenizer import Tokenizer  # noqa: PLC0415 - workers load only what they measure

    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    ids = Tokenizer.from_folder(Path(task.base)).encode(text)
    width = task.tokens + 1
    return [ids[row * width : (row + 1) * width] for row in range(task.examples)]


def ours(task: Task) -> Step:
    """One step as `model.train` takes it."""
    import torch  # noqa: PLC0415 - as above

    from model import PROJECTIONS, EncodedExample, LoRAConfig, add_lora, load_checkpoint, sequence_losses  # noqa: PLC0415
    from model.training import StepCost, lean_sequence_losses  # noqa: PLC0415 - as above

    narrow = task.name.endswith("bfloat16 base")
    model = load_checkpoint(Path(task.base), dtype=torch.bfloat16 if narrow else torch.float32)
    lora = LoRAConfig(rank=_RANK, alpha=_ALPHA, targets=PROJECTIONS)
    add_lora(model, lora, seed=_SEED, dtype=torch.float32)
    start = max(1, int(task.tokens * task.prompt))
    batch = [EncodedExample(tuple(row), start) for row in token_rows(task)]
    cost = StepCost(
        precision=cast("Any", task.precision), checkpointing="blocks" if task.name.endswith("blocks") else "none"
    )

    def loss() -> torch.Tensor:
        if task.name == "plain":
            return sequence_losses(model, batch).mean()
        return lean_sequence_losses(model, batch, cost=cost).mean()

    return optimised([p for p in model.parameters() if p.requires_grad], loss)


def peft(task: Task) -> Step:
    """The same by transformers and PEFT, from the same weights and the same first adapter."""
    import torch  # noqa: PLC0415 - as above
    import transformers  # noqa: PLC0415 - as above

    model = peft_model(task)
    rows = torch.tensor(token_rows(task))
    labels = rows.clone()
    labels[:, : max(1, int(task.tokens * task.prompt))] = -100
    transformers.logging.set_verbosity_error()

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bfloat16"):
            # The labels are what comes next, so that the last token is only predicted: as many positions as ours.
            found = model(input_ids=rows[:, :-1], labels=labels, shift_labels=labels[:, 1:].contiguous())
        return cast("torch.Tensor", found.loss)

    return optimised([p for p in model.parameters() if p.requires_grad], loss)


def peft_model(task: Task) -> Any:  # noqa: ANN401 - whatever get_peft_model makes
    """SmolLM2 as transformers' Llama with our weights and a PEFT adapter with our first values."""
    import torch  # noqa: PLC0415 - as above
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - as above
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - as above

    from model import PROJECTIONS, LoRAConfig, initial_adapter  # noqa: PLC0415 - as above
    from model.config import ModelConfig  # noqa: PLC0415 - as above
    from model.peft_format import peft_name  # noqa: PLC0415 - as above
    from model.tensor_file import TensorFile  # noqa: PLC0415 - as above

    config = ModelConfig.from_json((Path(task.base) / "config.json").read_text(encoding="utf-8"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.model_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.query_heads[0],
            num_key_value_heads=config.kv_heads[0],
            intermediate_size=config.ffn_dims[0],
            max_position_embeddings=config.max_context,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=True,
        )
    )
    renamed = {"embed_tokens": "embedding", "self_attn": "attention", "mlp": "ffn"}
    renamed |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    with TensorFile(Path(task.base) / "model.safetensors") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = [renamed.get(part, part) for part in name.removeprefix("model.").split(".")]
            parameter.copy_(file.read(".".join(parts)))
    lora = LoraConfig(
        r=_RANK, lora_alpha=_ALPHA, lora_dropout=0.0, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, lora)
    first = initial_adapter(config, LoRAConfig(rank=_RANK, alpha=_ALPHA, targets=PROJECTIONS), _SEED)
    theirs = dict(adapted.named_parameters())
    with torch.no_grad():
        for name, values in first.items():
            theirs[peft_name(name).replace(".weight", ".default.weight")].copy_(values)
    return adapted.train()


def optimised(trainable: list[Any], loss_of: Callable[[], Any]) -> Step:
    """One step of AdamW on a loss; returns its value."""
    import torch  # noqa: PLC0415 - as above

    optimizer = torch.optim.AdamW(trainable, lr=_LEARNING_RATE, weight_decay=0.0, fused=True)

    def step() -> float:
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        return float(loss)

    return step


def work(task: Task) -> None:
    """Be a contender: one step for each line on standard input, and at its end the memory it took."""
    import torch  # noqa: PLC0415 - as above

    torch.set_num_threads(task.threads)
    for name in ("transformers.models.llama", "peft") if task.name == "peft" else ("model.training",):
        importlib.import_module(name)
    imports = peak_megabytes()
    step = (peft if task.name == "peft" else ours)(task)
    tell({"ready": True})
    for _line in sys.stdin:
        started = time.perf_counter()
        loss = step()
        tell({"seconds": time.perf_counter() - started, "loss": loss})
    tell({"peak_mb": peak_megabytes(), "import_mb": imports})


def tell(value: dict[str, Any]) -> None:
    """Write a line to the process that asked."""
    print(json.dumps(value), flush=True)


class Contender:
    """A process that takes steps when asked."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.memory: dict[str, float] = {}
        command = [sys.executable, "-W", "ignore", __file__, "--work", json.dumps(asdict(task))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def step(self, *, counts: bool) -> None:
        """Take one step; the time of those that do not count is forgotten."""
        cast("IO[str]", self._process.stdin).write("step\n")
        cast("IO[str]", self._process.stdin).flush()
        answer = self._answer()
        self.losses.append(answer["loss"])
        if counts:
            self.seconds.append(answer["seconds"])

    def end(self) -> None:
        """Ask what memory it took, and let it go."""
        cast("IO[str]", self._process.stdin).close()
        self.memory = self._answer()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        line = cast("IO[str]", self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{self.task.name} ended early; its error is above")
        return cast("dict[str, float]", json.loads(line))


def measure(tasks: list[Task], *, steps: int) -> list[Row]:
    """All contenders in turns; the first is what the others are compared with."""
    contenders = [Contender(task) for task in tasks]
    for number in range(steps + 1):
        for contender in contenders:
            contender.step(counts=number > 0)
    for contender in contenders:
        contender.end()
    reference = contenders[0]
    return [row(contender, reference) for contender in contenders]


def row(contender: Contender, reference: Contender) -> Row:
    """A contender's figures beside the reference's."""
    task, memory, base = contender.task, contender.memory, reference.memory
    seconds = statistics.median(contender.seconds)
    return Row(
        batch=f"{task.examples}x{task.tokens}" + (f", {task.prompt:.0%} prompt" if task.prompt else ""),
        precision=task.precision,
        threads=task.threads,
        contender=task.name,
        step_s=seconds,
        best_step_s=min(contender.seconds),
        peak_mb=memory["peak_mb"],
        import_mb=memory["import_mb"],
        time_ratio=seconds / statistics.median(reference.seconds),
        memory_ratio=memory["peak_mb"] / base["peak_mb"],
        memory_ratio_without_imports=(memory["peak_mb"] - memory["import_mb"]) / (base["peak_mb"] - base["import_mb"]),
        loss_difference=max(abs(a - b) for a, b in zip(contender.losses, reference.losses, strict=True)),
    )


def show(rows: list[Row]) -> None:
    """Print a Markdown table."""
    print(
        "| batch | precision | threads | contender | s/step | best "
        "| peak MB | of it imports | time | memory | loss differs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r.batch} | {r.precision} | {r.threads} | {r.contender} | {r.step_s:.2f} | {r.best_step_s:.2f} "
            f"| {r.peak_mb:.0f} | {r.import_mb:.0f} | {r.time_ratio:.2f} "
            f"| {r.memory_ratio:.2f} ({r.memory_ratio_without_imports:.2f}) | {r.loss_difference:.1e} |",
            flush=True,
        )


def draw_rows(rows: list[Row], path: Path) -> None:
    """Time and memory as bars."""
    named = {f"{row.batch} {row.precision}: {row.contender}": row for row in rows}
    panels = (
        Panel("seconds a step\n(less is better)", {name: row.step_s for name, row in named.items()}, "{:.2f}"),
        Panel("peak MB of the\nprocess (less)", {name: row.peak_mb for name, row in named.items()}),
    )
    ours = [name for name, row in named.items() if row.contender.startswith("lean")]
    draw(panels, title="A LoRA step, rank 8 on all linear layers of SmolLM2-135M", ours=ours, path=path)


def main() -> int:
    """Measure what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a converted SmolLM2 (config.json, model.safetensors, tokenizer)")
    parser.add_argument("--batch", action="append", help="EXAMPLESxTOKENS; may be given again")
    parser.add_argument("--precision", action="append", choices=["float32", "bfloat16"], help="may be given again")
    parser.add_argument("--contender", action="append", help="only these beside PEFT; may be given again")
    parser.add_argument("--steps", type=int, default=7, help="steps that count, after one that warms up")
    parser.add_argument("--prompt", type=float, default=0.0, help="share of each example that does not count")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contender")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--picture", type=picture_path, help="draw time and memory into this .svg or .png file as well")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Task(**json.loads(options.work)))
        return 0
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as folder:
        rows = []
        base = options.base or converted(Path(folder) / "base")
        for batch in options.batch or ["4x128", "8x64"]:
            examples, tokens = map(int, batch.split("x"))
            for precision in options.precision or ["float32", "bfloat16"]:
                names = (*_PEFT[precision], *(options.contender or _OURS[precision]))
                tasks = [
                    Task(name, precision, str(base), examples, tokens, options.prompt, options.threads)
                    for name in names
                ]
                rows += measure(tasks, steps=options.steps)
    if options.picture:
        draw_rows(rows, options.picture)
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
