"""`lamella fleet`: simulated devices on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.console import console, open_service, show_json, words_aside
from server.cli.rollout_options import AsJson

app = typer.Typer(no_args_is_help=True, help="Simulated devices, each with one person's text.")


@app.command()
def make(
    model: Annotated[str, typer.Option(help="Name of the model in the registry.")],
    devices: Annotated[int, typer.Option(help="How many.", min=1)],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    data: Annotated[str, typer.Option(help="Text: chitchat, docstrings or jsonl:FOLDER.")] = "chitchat",
    as_json: AsJson = False,
) -> None:
    """Write a simulated fleet for `flwr run . --run-config 'fleet="FOLDER"'`."""
    words_aside(as_json)
    from server.federation.bases import base_of, newest_release, tree_of
    from server.federation.fleet import make_fleet

    service = open_service()
    base = base_of(service.registry, newest_release(service.registry, model))
    tree = tree_of(service.settings, service.registry, service.artifacts, model=model, version=base.number)
    users = make_fleet(out.absolute(), tree=tree, data=data, devices=devices)
    console.print(f"{out}: {len(users)} devices on {model} v{base.number}")
    if as_json:
        show_json({"fleet": str(out.absolute()), "model": model, "version": base.number, "users": users})
