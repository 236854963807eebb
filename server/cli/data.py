"""`lamella data`: people's text as files, one a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.console import console, show_json, words_aside
from server.cli.rollout_options import AsJson

app = typer.Typer(no_args_is_help=True, help="People's text as JSONL files, one a person.")


@app.command()
def export(
    data: Annotated[str, typer.Option(help="Where from: chitchat, docstrings or jsonl:FOLDER.")],
    out: Annotated[Path, typer.Option(help="Folder to write; `--data jsonl:FOLDER` reads it.")],
    users: Annotated[int, typer.Option(help="People to train on.", min=1)] = 8,
    at_least: Annotated[int, typer.Option(help="Only people with as many examples to train on.", min=1)] = 1,
    held_out: Annotated[int, typer.Option(help="People that no device trains on; a release is judged by them.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Write a source as files: the shape of your own data, and quicker to read again."""
    words_aside(as_json)
    from model import export_users, open_source

    export_users(open_source(data), out, users=users, held_out_users=held_out, at_least=at_least)
    console.print(f"{out}: {users} people to train on, up to {held_out} held out. Use it with --data jsonl:{out}")
    if as_json:
        held = sorted(path.stem for path in (out / "held_out").glob("*.jsonl"))
        show_json({"data": f"jsonl:{out}", "users": sorted(p.stem for p in out.glob("*.jsonl")), "held_out": held})
