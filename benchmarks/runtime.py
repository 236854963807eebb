"""Generation beside its peers, on the same weights and threads, in one run.

    python benchmarks/runtime.py --base FOLDER            # a base such as `lamella base import` writes
    python benchmarks/runtime.py --random openelm-270m    # random weights of a preset; speed does not mind

Every contender is a process of its own, so that its memory is its own; they take turns, round by round, so that what
else the machine does hits all of them. Figures are medians over the rounds, with the spread beside them.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chart import Panel, draw, picture_path
from memory import peak_megabytes

PROMPT_TOKENS = 128
REPEATED_TOKENS = 96
PAGES = ("privacy", "updates", "quickstart", "federated", "index")
RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclasses.dataclass(frozen=True)
class Contender:
    """Who runs, and on what.

    Attributes:
        most_rounds: rounds after the warm-up that are enough for somebody very slow.
    """

    name: str
    engine: str
    precision: str
    is_lookup_on: bool = False
    most_rounds: int = 1000


CONTENDERS = (
    Contender("lamella llamacpp q8_0", "sdk", "int8"),
    Contender("lamella llamacpp q8_0 + lookup", "sdk", "int8", is_lookup_on=True),
    Contender("llama.cpp q8_0, bare binding", "binding", "int8"),
    Contender("lamella torch int8", "torch", "int8"),
    Contender("lamella torch int8 + lookup", "torch", "int8", is_lookup_on=True),
    Contender("lamella torch float16", "torch", "float16"),
    Contender("lamella torch bfloat16", "torch", "bfloat16"),
    Contender("lamella llamacpp f16", "sdk", "float16"),
    Contender("transformers bfloat16", "transformers", "bfloat16"),
    Contender("transformers float32", "transformers", "float32"),
    Contender("mlx-lm int8, float32", "mlx", "int8", most_rounds=1),
)


def main() -> int:
    """Measure and print Markdown, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--base", type=Path, help="folder of a base; default: SmolLM2 from the installed package")
    source.add_argument("--random", metavar="PRESET", help="random weights of this preset instead")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--only", help="contenders whose name contains this text")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--picture", type=picture_path, help="draw the figures into this .svg or .png file as well")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(Contender(**json.loads(arguments.worker)), arguments.base, arguments.threads, arguments.new_tokens)
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as scratch:
        base = prepare(arguments.base, arguments.random, Path(scratch))
        results = measure(base, arguments)
    if arguments.picture:
        draw_results(results, arguments.picture, name=arguments.random or "SmolLM2-135M")
    print(json.dumps(results, indent=2) if arguments.json else markdown(results))
    return 0


# --- one contender, in a process of its own


def work(contender: Contender, base: Path, threads: int, new_tokens: int) -> int:
    """Load, then answer each line of the input with one measured round."""
    load_started = time.perf_counter()
    for name in IMPORTS[contender.engine]:
        importlib.import_module(name)
    imports_mb = peak_megabytes()
    run = ENGINES[contender.engine](contender, base, threads)
    load_s = time.perf_counter() - load_started
    print(json.dumps({"load_s": load_s, "imports_mb": imports_mb}), flush=True)
    for line in sys.stdin:
        before = energy_joules()
        result = run(json.loads(line), new_tokens)
        result["joules"] = None if before is None else (energy_joules() or 0.0) - before
        print(json.dumps(result | {"peak_mb": peak_megabytes()}), flush=True)
    return 0


def sdk(contender: Contender, base: Path, threads: int) -> Callable[[list[int], int], dict[str, Any]]:
    """A back end of ours, through the interface that the device uses."""
    from client_sdk.backends import BackendModel, EngineSettings, GenerationRequest, open_backend  # noqa: PLC0415
    from client_sdk.backends.memory import return_freed_memory  # noqa: PLC0415
    from model.tokenizer import Tokenizer  # noqa: PLC0415

    # As the runtime does before it opens an engine.
    tokenizer = Tokenizer.from_folder(base)
    return_freed_memory()
    settings = EngineSettings(
        backend="torch" if contender.engine == "torch" else "llamacpp",
        precision=contender.precision,  # type: ignore[arg-type]
        threads=threads,
        max_batch=1,
        is_lookup_on=contender.is_lookup_on,
    )
    model = BackendModel(base, "benchmark", base.parent / "engine", stop_ids=tokenizer.stop_ids)
    backend, _ = open_backend(model, settings)

    def run(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        request = GenerationRequest(token_ids=tuple(prompt), max_new_tokens=new_tokens)
        started = time.perf_counter()
        first: float | None = None
        ending = None
        for piece in backend.stream(request):
            first = first or time.perf_counter()
            ending = piece.ending or ending
        if ending is None or ending.new_tokens < new_tokens:
            raise SystemExit(f"{contender.name} stopped early; its speed would mean nothing")
        rest = time.perf_counter() - (first or started)
        return measured(
            (first or started) - started, max(1, ending.new_tokens - 1) / rest, backend.facts().weight_bytes
        )

    return run


def binding(_contender: Contender, base: Path, threads: int) -> Callable[[list[int], int], dict[str, Any]]:
    """llama.cpp as its binding gives it, timed by llama.cpp itself."""
    import xllamacpp  # noqa: PLC0415

    [file] = (base.parent / "engine").glob("base-*-q8_0-*.gguf")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup, params.cache_ram_mib = 2048, 1, -1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    server.handle_completions({"prompt": [1], "max_tokens": 1})

    def run(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        body = {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0.0, "samplers": ["top_k"], "top_k": 1}
        timings = server.handle_completions(body)["timings"]
        if timings["predicted_n"] < new_tokens:
            raise SystemExit("llama.cpp stopped early; its speed would mean nothing")
        return measured(timings["prompt_ms"] / 1000.0, timings["predicted_per_second"], file.stat().st_size)

    return run


def transformers(contender: Contender, base: Path, threads: int) -> Callable[[list[int], int], dict[str, Any]]:
    """The generic path: `generate` of transformers."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(base.parent / "hf", dtype=getattr(torch, contender.precision)).eval()
    weight_bytes = sum(weight.nbytes for weight in model.parameters())

    def generate(prompt: list[int], count: int) -> float:
        started = time.perf_counter()
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False
            )
        return time.perf_counter() - started

    def run(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        first = generate(prompt, 1)
        whole = generate(prompt, new_tokens)
        return measured(first, (new_tokens - 1) / max(1e-9, whole - first), weight_bytes)

    return run


def mlx(_contender: Contender, base: Path, _threads: int) -> Callable[[list[int], int], dict[str, Any]]:
    """mlx-lm on MLX's build for CPUs, which chooses its threads itself."""
    import mlx.core as mx  # noqa: PLC0415
    from mlx.utils import tree_flatten  # noqa: PLC0415
    from mlx_lm import load  # noqa: PLC0415
    from mlx_lm.generate import generate_step  # noqa: PLC0415

    model, _ = load(str(base.parent / "mlx"))
    weight_bytes = sum(weight.nbytes for _, weight in tree_flatten(model.parameters()))

    def run(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        started = time.perf_counter()
        times = [time.perf_counter() for _ in generate_step(mx.array(prompt), model, max_tokens=new_tokens)]
        return measured(times[0] - started, (len(times) - 1) / (times[-1] - times[0]), weight_bytes)

    return run


REFERENCE = "llama.cpp q8_0, bare binding"
IMPORTS = {
    "sdk": ("client_sdk", "client_sdk.backends.llamacpp", "xllamacpp", "model.tokenizer"),
    "torch": ("client_sdk", "client_sdk.backends.torch_backend"),
    "binding": ("xllamacpp",),
    "transformers": ("transformers.models.llama.modeling_llama",),
    "mlx": ("mlx_lm",),
}
ENGINES = {"sdk": sdk, "torch": sdk, "binding": binding, "transformers": transformers, "mlx": mlx}


def measured(first_token_s: float, tokens_per_second: float, weight_bytes: int) -> dict[str, Any]:
    """One round's figures."""
    return {
        "first_token_ms": 1000.0 * first_token_s,
        "tokens_per_second": tokens_per_second,
        "weight_bytes": weight_bytes,
    }


def prompt_of(ids: list[int], kind: str, turn: int) -> list[int]:
    """A prompt of 128 tokens that nobody saw before; `repeat` says a text three times and stops in its middle.

    An engine remembers beginnings, and with prompt lookup whole texts: the same prompt again would flatter it.
    """
    first = turn * PROMPT_TOKENS
    if kind == "plain":
        return ids[first : first + PROMPT_TOKENS]
    # From the end of the text, where no plain prompt comes from.
    text = ids[-first - PROMPT_TOKENS :][:REPEATED_TOKENS]
    return text + text + text + text[: REPEATED_TOKENS // 4]


def documentation() -> str:
    """Prose to go on from: this repository's guide."""
    folder = Path(__file__).resolve().parent.parent / "docs"
    return "\n".join((folder / f"{name}.md").read_text(encoding="utf-8") for name in PAGES)


# --- all of them


def prepare(base: Path | None, random: str | None, scratch: Path) -> Path:
    """The base in a scratch folder, with the GGUF and Hugging Face forms of it that contenders need."""
    from client_sdk.backends.gguf_files import base_file  # noqa: PLC0415
    from model import find_smollm2, import_gguf  # noqa: PLC0415
    from model.export import export_hf, export_mlx  # noqa: PLC0415

    target = scratch / "model" / "base"
    if random:
        write_random(random, target)
    elif base:
        target.parent.mkdir(parents=True)
        target.symlink_to(base.absolute(), target_is_directory=True)
    else:
        import_gguf(find_smollm2(), target)
    if export_hf(target, target.parent / "hf") != "llama":  # transformers has no class for it: its rows are left out
        shutil.rmtree(target.parent / "hf")
    export_mlx(target, target.parent / "mlx", bits=8, group_size=64, dtype="float32")  # in 16 bits it is slower still
    for quantization in ("q8_0", "f16"):
        base_file(target.parent / "engine", target, "benchmark", quantization)
    return target


def write_random(name: str, target: Path) -> None:
    """Random weights in a preset's shape, with a small tokenizer."""
    import torch  # noqa: PLC0415

    from model import LayeredTransformer, Tokenizer, preset, pretrain_tiny, save_checkpoint  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        pretrain_tiny(Path(folder), steps=1, seed=0, texts=documentation().splitlines())
        tokenizer = Tokenizer.from_folder(Path(folder) / "base")
    torch.manual_seed(0)
    model = LayeredTransformer(preset(name))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.02)
        # Tokens without letters are never the likeliest then: an engine shows nothing while it has no whole character.
        ids = range(model.config.vocab_size)
        model.embedding.weight[[n for n in ids if n >= tokenizer.vocab_size or not shown(tokenizer, n)]] = 0.0
    save_checkpoint(target, model, tokenizer)


def shown(tokenizer: Any, token_id: int) -> bool:  # noqa: ANN401 - imported where it is used
    """Whether a token alone is text."""
    text = tokenizer.decode([token_id])
    return token_id not in tokenizer.stop_ids and bool(text) and text.isascii()


def measure(base: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start every contender, let them take turns, and gather their figures."""
    from model.tokenizer import Tokenizer  # noqa: PLC0415

    ids = Tokenizer.from_folder(base).encode(documentation())
    chosen = [c for c in CONTENDERS if not arguments.only or arguments.only in c.name]
    with contextlib.ExitStack() as stack:
        workers = {}
        for contender in chosen:
            worker = stack.enter_context(started(contender, base, arguments))
            if worker is not None:
                workers[contender.name] = worker
        figures: dict[str, dict[str, list[Any]]] = {name: {} for name in workers}
        for turn in range(arguments.rounds + 1):  # the first is a warm-up
            for kind in ("plain", "repeat"):
                for name, worker in workers.items():
                    if turn > worker.contender.most_rounds:
                        continue
                    result = asked(worker, prompt_of(ids, kind, turn))
                    if turn:
                        for key, value in result.items():
                            figures[name].setdefault(f"{kind}_{key}", []).append(value)
        once = {name: {"load_s": w.load_s, "imports_mb": w.imports_mb} for name, w in workers.items()}
    return {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "new_tokens": arguments.new_tokens,
        "load_average": os.getloadavg(),
        "bandwidth_gb_s": read_bandwidth(arguments.threads),
        "contenders": {name: once[name] | values for name, values in figures.items()},
    }


@dataclasses.dataclass
class Worker:
    """A contender's process, loaded."""

    contender: Contender
    process: "subprocess.Popen[str]"
    load_s: float
    imports_mb: float


@contextlib.contextmanager
def started(contender: Contender, base: Path, arguments: argparse.Namespace) -> Iterator[Worker | None]:
    """Run a contender's process; None where it cannot run this model here."""
    process = subprocess.Popen(
        [
            sys.executable, str(Path(__file__).resolve()), "--base", str(base),
            "--worker", json.dumps(dataclasses.asdict(contender)),
            "--threads", str(arguments.threads), "--new-tokens", str(arguments.new_tokens),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
    )  # fmt: skip
    assert process.stdout is not None  # noqa: S101 - asked for above
    try:
        line = process.stdout.readline()
        yield Worker(contender, process, **json.loads(line)) if line else None
    finally:
        process.terminate()
        process.wait()


def asked(worker: Worker, prompt: list[int]) -> dict[str, Any]:
    """One measured round."""
    assert worker.process.stdin is not None  # noqa: S101 - as above
    assert worker.process.stdout is not None  # noqa: S101 - as above
    worker.process.stdin.write(f"{json.dumps(prompt)}\n")
    worker.process.stdin.flush()
    line = worker.process.stdout.readline()
    if not line:
        raise SystemExit(f"a contender died: {worker.process.args!r}; run it by hand to see why")
    result: dict[str, Any] = json.loads(line)
    return result


def read_bandwidth(threads: int) -> float:
    """GB/s at which this machine reads memory, the best of several sums over 512 MB."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    block = torch.ones(1 << 27)
    best = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        block.sum()
        best = max(best, block.nbytes / (time.perf_counter() - begun))
    return best / 1e9


def energy_joules() -> float | None:
    """The package's energy counter, where the machine tells."""
    try:
        return int(RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def markdown(results: dict[str, Any]) -> str:
    """A table of medians."""
    bandwidth = results["bandwidth_gb_s"]
    load = results["load_average"][0]
    columns = (
        "", "first token, 128-token prompt (ms)", "tokens/s", "against llama.cpp", "of bandwidth",
        "tokens/s on repeated text", "against llama.cpp", "peak MB", "of it imports", "weights MB", "load s", "J/token",
    )  # fmt: skip
    lines = [
        f"{results['threads']} threads, {results['rounds']} rounds, load {load:.1f}, {bandwidth:.0f} GB/s read.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for name, figures in results["contenders"].items():
        rate, weight = statistics.median(figures["plain_tokens_per_second"]), figures["plain_weight_bytes"][0]
        joules = [value for value in figures["plain_joules"] if value is not None]
        energy = f"{statistics.median(joules) / results['new_tokens']:.2f}" if joules else "not readable"
        lines.append(
            f"| {name} | {spread(figures['plain_first_token_ms'])} | {spread(figures['plain_tokens_per_second'])} "
            f"| {against(REFERENCE, name, results, 'plain_tokens_per_second')} | {rate * weight / bandwidth / 1e9:.0%} "
            f"| {spread(figures['repeat_tokens_per_second'])} "
            f"| {against(REFERENCE, name, results, 'repeat_tokens_per_second')} "
            f"| {max(figures['repeat_peak_mb']):.0f} | {figures['imports_mb']:.0f} "
            f"| {weight / 1e6:.0f} | {figures['load_s']:.1f} | {energy} |"
        )
    return "\n".join(lines)


def draw_results(results: dict[str, Any], path: Path, *, name: str) -> None:
    """The medians as bars."""

    def medians(figure: str) -> dict[str, float]:
        return {who: statistics.median(values[figure]) for who, values in results["contenders"].items()}

    panels = (
        Panel("tokens/s\n(more is better)", medians("plain_tokens_per_second")),
        Panel("tokens/s on text\nthat repeats (more)", medians("repeat_tokens_per_second")),
        Panel("ms to the first token, after\na 128-token prompt (less)", medians("plain_first_token_ms")),
        Panel("peak MB of the\nprocess (less)", medians("repeat_peak_mb")),
    )
    ours = [contender.name for contender in CONTENDERS if contender.engine in {"sdk", "torch"}]
    draw(panels, title=f"{name}, {results['threads']} threads", ours=ours, path=path)


def against(other: str, name: str, results: dict[str, Any], figure: str) -> str:
    """How many times another's figure: the median over rounds, each compared with the same round of the other."""
    if other not in results["contenders"]:
        return "-"
    mine, theirs = (results["contenders"][who][figure] for who in (name, other))
    return f"{statistics.median(a / b for a, b in zip(mine, theirs, strict=False)):.2f}"


def spread(values: list[float]) -> str:
    """The median, and the lowest and highest beside it."""
    return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"


if __name__ == "__main__":
    sys.exit(main())
