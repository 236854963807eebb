"""`lamella audit`: who did what."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.console import console, open_service, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="The audit log: who did what, over REST, in the console and here.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 50,
    before: Annotated[int | None, typer.Option(help="Only entries before this number.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """List entries, the newest first."""
    entries = open_service().registry.audit_log(before=before, limit=limit)
    if as_json:
        show_json([vars(entry) for entry in entries])
        return
    show_table(
        "Audit log",
        ("entry", "when (UTC)", "who", "via", "what", "to", "outcome"),
        [(e.position, f"{e.at:%Y-%m-%d %H:%M:%S}", e.actor, e.via, e.action, e.subject, e.outcome) for e in entries],
    )


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Recompute the log's chain of digests: was an entry changed or removed?

    Who can write to the database can cut off the newest entries, so keep the digest that this prints elsewhere.
    """
    entries, digest = open_service().registry.verify_audit()
    if as_json:
        show_json({"entries": entries, "digest": digest})
        return
    console.print(f"{entries} entries, none changed. The newest one's digest: {digest}", soft_wrap=True)
