"""`lamella evaluate`: perplexity and multiple-choice accuracy of a model on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from server.cli.console import console, show_json, show_table
from server.cli.group_losses import group_losses
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from model import LoadedModel


def evaluate(
    model: Annotated[
        Path, typer.Argument(help="Folder of a base, or of a version that holds base/.", exists=True, file_okay=False)
    ],
    perplexity: Annotated[Path | None, typer.Option(help="Text file to compute the perplexity of.")] = None,
    choices: Annotated[
        list[Path] | None, typer.Option(help="File of lines with query, choices and gold (repeatable).")
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Data (`jsonl:FOLDER`, chitchat, docstrings): loss on its held-out text, by group label."),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option(help="With --groups: the version before, to compare with.", exists=True, file_okay=False),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens a window of the text.", min=2)] = 1024,
    stride: Annotated[int, typer.Option(help="Tokens from one window's beginning to the next.", min=1)] = 512,
    max_tokens: Annotated[int | None, typer.Option(help="Take only so much of the text.", min=2)] = None,
    limit: Annotated[int | None, typer.Option(help="Ask only so many questions of each file.", min=1)] = None,
    dtype: Annotated[str, typer.Option(help="Compute in float32, or in bfloat16 (quicker, errs by about 0.1 %).")] = (
        "float32"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model: perplexity by windows, accuracy by the likelihood of each answer, loss by group of text.

    With --groups, each example's loss is a mean over the tokens of its answer, in nats; with --before also how it
    changed, with a 95% interval. How it is measured: docs/benchmarks.md.
    """
    if perplexity is None and not choices and groups is None:
        raise ConfigurationError("Say what to measure: --perplexity FILE, --choices FILE.jsonl, --groups DATA.")
    if before is not None and groups is None:
        raise ConfigurationError("--before is for --groups: say which data to compare on.")
    results: dict[str, dict[str, float | int | list[float]]] = {}
    loaded = _load(model, dtype)
    with Progress(console=console, transient=True, disable=as_json) as progress:

        def bar(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name)
            return lambda done, count: progress.update(task, completed=done, total=count)

        if perplexity is not None:
            results[perplexity.name] = _perplexity(
                loaded, perplexity, context=context, stride=stride, max_tokens=max_tokens, on_progress=bar("Perplexity")
            )
        for path in choices or []:
            results[path.name] = _choices(loaded, path, limit=limit, on_progress=bar(path.name))
        if groups is not None:
            results |= group_losses(loaded, None if before is None else _load(before, dtype), groups, limit=limit)
    if as_json:
        show_json(results)
        return
    rows = [(name, measure, _shown(value)) for name, found in results.items() for measure, value in found.items()]
    show_table(str(model), ("file", "measure", "value"), rows)


def _load(folder: Path, dtype: str) -> LoadedModel:
    import torch

    from model import LoadedModel, Tokenizer, load_checkpoint, load_version
    from model.quantization import dequantize_model

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype not in kinds:
        raise ConfigurationError(f"--dtype must be one of {', '.join(kinds)}; got {dtype!r}.")
    if (folder / "base").is_dir():
        return load_version(folder, dtype=kinds[dtype])
    model = load_checkpoint(folder, dtype=kinds[dtype])
    dequantize_model(model)  # once instead of at every batch; the same numbers
    return LoadedModel(model=model, tokenizer=Tokenizer.from_folder(folder), has_adapter=False)


def _perplexity(
    loaded: LoadedModel,
    path: Path,
    *,
    context: int,
    stride: int,
    max_tokens: int | None,
    on_progress: Callable[[int, int], None],
) -> dict[str, float | int | list[float]]:
    from model import perplexity

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}.") from error
    found = perplexity(
        loaded.model,
        loaded.tokenizer.encode(text),
        context=min(context, loaded.model.config.max_context),
        stride=stride,
        max_tokens=max_tokens,
        on_progress=on_progress,
    )
    return {"perplexity": found.perplexity, "loss": found.loss, "tokens": found.tokens}


def _choices(
    loaded: LoadedModel, path: Path, *, limit: int | None, on_progress: Callable[[int, int], None]
) -> dict[str, float | int | list[float]]:
    from model import choice_accuracy, read_questions

    found = choice_accuracy(loaded.model, loaded.tokenizer, read_questions(path, limit=limit), on_progress=on_progress)
    return {
        "accuracy_normalised": found.accuracy_normalised,
        "accuracy_normalised_95": list(found.interval_normalised),
        "accuracy": found.accuracy,
        "questions": found.questions,
    }


def _shown(value: float | list[float]) -> str:
    if isinstance(value, list):
        return " to ".join(f"{number:.3f}" for number in value)
    return str(value) if isinstance(value, int) else f"{value:.4f}"
