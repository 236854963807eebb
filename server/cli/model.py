"""`lamella model`: plan a model's layers, and look into what is on the disk."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.console import console, megabytes, problems, show_json, show_table
from server.cli.sizes import parse_amount
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from model import ModelConfig
    from model.inspection import CheckpointFacts
    from model.plans import Deployment, Device, FoundPlan

app = typer.Typer(no_args_is_help=True, help="Plan a model's layers, and look into a checkpoint.")

Picture = Annotated[Path | None, typer.Option(help="Draw the plan into this .svg or .png file.", dir_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DEFAULTS = {"vocab_size": 32_000, "max_context": 2048}
_CACHE_BYTES = {"32": 4, "16": 2, "8": 1}


@app.command()
def plan(
    preset: Annotated[str | None, typer.Option(help="A named plan, e.g. openelm-270m.")] = None,
    params: Annotated[str | None, typer.Option(help="Make a plan with about this many weights, e.g. 270M.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Search the best plan whose weights and cache take at most this, e.g. 300MB.")
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="openelm (default with --params), pyramid or uniform; a search looks at all unless told."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Depth, with --params; chosen if not given.", min=1)] = None,
    width: Annotated[int | None, typer.Option(help="Width, with --params; chosen if not given.", min=64)] = None,
    vocab: Annotated[
        int | None, typer.Option(help="Rows of the embedding; 32000, or the preset's, if not given.", min=1)
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence, in tokens; 2048, or the preset's, if not given.", min=1)
    ] = None,
    repeat_layers: Annotated[int, typer.Option(help="Run each layer's weights this often in a row.", min=1)] = 1,
    share_kv: Annotated[
        int, typer.Option(help="Let up to this many layers attend over one layer's keys and values.", min=1)
    ] = 1,
    tokens_per_second: Annotated[
        float, typer.Option(help="Speed that a search must reach at full context.", min=0)
    ] = 10.0,
    bandwidth: Annotated[str, typer.Option(help="Bytes a second that the device reads while decoding.")] = "12GB",
    flops: Annotated[str, typer.Option(help="Operations a second of the device.")] = "50G",
    bits: Annotated[int, typer.Option(help="Bits of a stored weight: 32, 16, 8 or 4.")] = 8,
    cache_bits: Annotated[str, typer.Option(help="Bits of a number in the KV cache: 32, 16 or 8.")] = "16",
    picture: Picture = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the plan's config.json to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a plan's layers: heads, widths, weights, KV cache and work for a token.

    The plan is a named one (--preset), made for a number of weights (--params), or searched for a device (--memory).
    """
    _require_one_kind(preset, params, memory)
    if params is None and (layers is not None or width is not None):
        raise ConfigurationError("--layers and --width belong to --params.")
    if preset is not None and shape is not None:
        raise ConfigurationError("--shape belongs to --params and --memory; a preset has its own.")
    from model.plans import Deployment, Device, with_repeated_layers, with_shared_kv

    cache_bytes = _cache_bytes(cache_bits)
    found: FoundPlan | None = None
    if memory is not None:
        device = Device(
            memory_bytes=parse_amount(memory, option="--memory"),
            bandwidth=parse_amount(bandwidth, option="--bandwidth"),
            flops=parse_amount(flops, option="--flops"),
        )
        found = _searched(
            device,
            Deployment(weight_bits=bits, kv_bytes_per_element=cache_bytes, context=context or _DEFAULTS["max_context"]),
            shape,
            {
                "tokens_per_second": tokens_per_second,
                "vocab_size": vocab or _DEFAULTS["vocab_size"],
                "repeats": repeat_layers,
                "kv_span": share_kv,
            },
        )
        config, title = found.config, f"{found.shape} plan for {memory}"
    else:
        wished = {"vocab_size": vocab, "max_context": context, "num_layers": layers, "model_dim": width}
        said = {name: value for name, value in wished.items() if value is not None}
        config, title = _made(preset, params, shape or "openelm", said)
        config = with_shared_kv(with_repeated_layers(config, repeat_layers), share_kv)
    if picture is not None:
        _draw(config, title, picture, cache_bytes=cache_bytes)
    if out is not None:
        _write_config(config, out)
    if as_json:
        show_json(_plan_as_json(config, cache_bytes=cache_bytes, found=found))
        return
    _show_plan(config, title, cache_bytes=cache_bytes)
    if found is not None:
        _show_estimate(found, bits)
    for path in (picture, None if out is None else out / "config.json"):
        if path is not None:
            console.print(f"Wrote {path}", soft_wrap=True)


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.", exists=True, file_okay=False)],
    precision: Annotated[
        list[str] | None,
        typer.Option(help="float32, bfloat16, float16, int8 or int4; repeatable. If not given: bfloat16, int8, int4."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt.", min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(help="Length of the answer.", min=2)] = 32,
    as_json: AsJson = False,
) -> None:
    """Generate on this machine at several precisions, and with llama.cpp where its binding is installed."""
    from model.inference import PRECISIONS, measure_decoding, read_bandwidth

    chosen = precision or ["bfloat16", "int8", "int4"]
    if unknown := sorted(set(chosen) - set(PRECISIONS)):
        raise ConfigurationError(f"No precision {unknown[0]!r}; choose among {', '.join(PRECISIONS)}.")
    base = folder / "base" if (folder / "base").is_dir() else folder
    with console.status("Reading memory ...") as status:
        bytes_per_s = read_bandwidth()
        rows: list[dict[str, Any]] = []
        for name in PRECISIONS:
            if name in chosen:
                status.update(f"Generating with {name} ...")
                found = measure_decoding(base, precision=name, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
                rows.append({"engine": "torch"} | asdict(found) | {"share": found.bandwidth_share(bytes_per_s)})
        status.update("Generating with llama.cpp ...")
        rows += _llama_cpp_row(base, bytes_per_s)
    if as_json:
        show_json({"read_bandwidth_bytes_per_s": bytes_per_s, "engines": rows})
        return
    show_table(
        f"{folder}: prompt of {prompt_tokens} tokens, answer of {new_tokens}; memory {bytes_per_s / 1e9:.1f} GB/s",
        ("engine", "weights", "threads", "size", "prompt, tokens/s", "answer, tokens/s", "of memory speed"),
        [
            (
                row["engine"],
                row["precision"],
                row["threads"],
                megabytes(row["weight_bytes"]),
                f"{row['prefill_tokens_per_s']:.0f}",
                f"{row['decode_tokens_per_s']:.1f}",
                f"{row['share']:.0%}",
            )
            for row in rows
        ],
    )


def _llama_cpp_row(base: Path, bytes_per_s: float) -> list[dict[str, Any]]:
    """llama.cpp on the checkpoint as Q8_0; empty, with a word why, where it cannot run it."""
    from model import ModelConfig
    from model.errors import ExportError
    from model.export import export_gguf
    from model.export.speed import measure_llama_cpp

    config = ModelConfig.from_json((base / "config.json").read_bytes())
    with tempfile.TemporaryDirectory(prefix="lamella-bench-") as work:
        gguf = Path(work) / "model.gguf"
        try:
            export_gguf(base, gguf, quantization="q8_0")
        except ExportError as error:
            problems.print(f"llama.cpp is left out: {error}", markup=False)
            return []
        speed = measure_llama_cpp(gguf, vocab_size=config.vocab_size, max_context=config.max_context)
        size = gguf.stat().st_size
    if speed is None:
        problems.print("llama.cpp is left out: pip install 'lamella[llamacpp]' brings its binding.", markup=False)
        return []
    facts = asdict(speed) | {"engine": speed.engine, "precision": "q8_0", "weight_bytes": size}
    return [facts | {"share": size * speed.decode_tokens_per_s / bytes_per_s}]


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="A checkpoint's folder or a version's tree.", metavar="DIR")],
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint or a version's tree is, from its headers: plan, sizes, dtypes, adapter, tokenizer."""
    from model.inspection import inspect_model

    facts = inspect_model(folder)
    if picture is not None:
        _draw(facts.config, folder.resolve().name, picture, cache_bytes=2)
    if as_json:
        show_json(_facts_as_json(facts))
        return
    _show_plan(facts.config, str(folder), cache_bytes=2)
    _show_facts(facts)
    if picture is not None:
        console.print(f"Wrote {picture}", soft_wrap=True)


def _require_one_kind(preset: str | None, params: str | None, memory: str | None) -> None:
    if [preset is not None, params is not None, memory is not None].count(True) != 1:
        raise ConfigurationError("Say which plan: one of --preset NAME, --params NUMBER, --memory BYTES.")


def _cache_bytes(cache_bits: str) -> int:
    if cache_bits not in _CACHE_BYTES:
        raise ConfigurationError(f"--cache-bits must be 32, 16 or 8; got {cache_bits!r}.")
    return _CACHE_BYTES[cache_bits]


def _write_config(config: ModelConfig, out: Path) -> None:
    from model.files import write_text

    if (out / "config.json").exists():
        raise ConfigurationError(f"{out} has a config.json already; give --out a new folder.")
    write_text(out / "config.json", config.to_json())


def _made(preset: str | None, params: str | None, shape: str, sizes: dict[str, Any]) -> tuple[ModelConfig, str]:
    """A named plan, or one made for a number of weights; and what to call it."""
    import dataclasses

    from model import preset as preset_named
    from model.plans import make_plan

    if params is None:
        name = preset or ""
        return dataclasses.replace(preset_named(name), **sizes), name
    wished = round(parse_amount(params, option="--params"))
    return make_plan(shape, wished, **(_DEFAULTS | sizes)), f"{shape} plan for {params}"


def _searched(device: Device, deployment: Deployment, shape: str | None, wishes: dict[str, Any]) -> FoundPlan:
    from model.plans import SHAPES, find_plan

    with problems.status("Looking at plans ..."):
        return find_plan(device, deployment, shapes=tuple(SHAPES) if shape is None else (shape,), **wishes)


def _draw(config: ModelConfig, title: str, picture: Path, *, cache_bytes: int) -> None:
    from server.cli.plan_picture import draw_plan

    draw_plan(config, title=title, path=picture, kv_bytes_per_element=cache_bytes)


def _show_plan(config: ModelConfig, title: str, *, cache_bytes: int) -> None:
    from server.cli.plan_table import plan_summary, plan_table

    console.print(plan_table(config, title=title, kv_bytes_per_element=cache_bytes))
    console.print(plan_summary(config, kv_bytes_per_element=cache_bytes))


def _show_estimate(found: FoundPlan, bits: int) -> None:
    told = found.estimate
    console.print(
        f"At {bits} bits: weights {megabytes(round(told.weight_bytes))}, cache of {found.config.max_context:,} tokens "
        f"{megabytes(round(told.cache_bytes))}\nabout {told.tokens_per_second:.0f} tokens a second with a full cache"
    )


def _plan_as_json(config: ModelConfig, *, cache_bytes: int, found: FoundPlan | None = None) -> dict[str, Any]:
    import dataclasses

    from model.plans import loss_proxy, plan_cost

    cost = plan_cost(config, kv_bytes_per_element=cache_bytes)
    told: dict[str, Any] = {
        "parameters": cost.parameters,
        "layers": [
            {"query_heads": layer.query_heads, "kv_heads": layer.kv_heads, "ffn_dim": layer.ffn_dim}
            for layer in cost.layers
        ],
        "layer_costs": [dataclasses.asdict(layer) for layer in cost.layers],
        "embedding_parameters": cost.embedding_parameters,
        "kv_cache_bytes_per_token": cost.kv_cache_bytes,
        "flops_per_token": cost.flops,
        "context": cost.context,
        "loss_proxy": loss_proxy(cost),
        "config": dataclasses.asdict(config),
    }
    if found is not None:
        told |= {
            "shape": found.shape,
            "estimate": dataclasses.asdict(found.estimate)
            | {
                "memory_bytes": found.estimate.memory_bytes,
                "tokens_per_second": found.estimate.tokens_per_second,
            },
        }
    return told


def _facts_as_json(facts: CheckpointFacts) -> dict[str, Any]:
    import dataclasses

    told = _plan_as_json(facts.config, cache_bytes=2)
    fields = ("parts", "dtypes", "quantized", "tokenizer", "adapter")
    return told | {name: value for name, value in dataclasses.asdict(facts).items() if name in fields}


def _show_facts(facts: CheckpointFacts) -> None:
    rows = [(part.name, f"{part.parameters:,}", megabytes(part.num_bytes)) for part in facts.parts]
    total = sum(part.parameters for part in facts.parts)
    show_table("Weights", ("part", "weights", "on disk"), [*rows, ("all", f"{total:,}", megabytes(facts.num_bytes))])
    dtypes = ", ".join(f"{dtype} {megabytes(length)}" for dtype, length in facts.dtypes.items())
    console.print(f"stored as     {dtypes}", highlight=False)
    if facts.quantized:
        kinds = "; ".join(f"{count} weights {kind}" for kind, count in facts.quantized.items())
        console.print(f"quantised     {kinds}", highlight=False)
    if facts.adapter is not None:
        lora = facts.adapter.lora
        console.print(
            f"adapter       LoRA rank {lora.rank}, alpha {lora.alpha:g} on {', '.join(lora.targets)}: "
            f"{facts.adapter.parameters:,} weights, {megabytes(facts.adapter.num_bytes)} "
            f"({facts.adapter.form or ', '.join(facts.adapter.dtypes)})",
            highlight=False,
        )
    if facts.tokenizer is None:
        console.print("tokenizer     none")
    else:
        has = "a" if facts.tokenizer.has_chat_template else "no"
        console.print(
            f"tokenizer     {facts.tokenizer.vocab_size:,} tokens, {has} chat template, an answer ends at "
            f"{' or '.join(facts.tokenizer.stop_tokens)}",
            highlight=False,
            markup=False,
        )
