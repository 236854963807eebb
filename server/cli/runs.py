"""`lamella runs`: what was trained, round by round."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.console import console, open_service, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Federated runs: list them, look into one.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    runs = open_service().registry.runs(model)
    if as_json:
        show_json([{"run_id": r.run_id, "model": r.model, "status": r.status, "reason": r.reason} for r in runs])
        return
    show_table(
        "Runs",
        ("run", "model", "parent", "status", "started", "reason"),
        [(r.run_id, r.model, r.parent_version, r.status, f"{r.started_at:%Y-%m-%d %H:%M}", r.reason) for r in runs],
    )


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(help="Run id.")],
    as_json: AsJson = False,
) -> None:
    """Show a run's recipe, rounds and the reasons of replies that were left out."""
    service = open_service()
    run, rounds = service.registry.run(run_id), service.registry.rounds(run_id)
    if as_json:
        rows = [
            {
                "round": r.server_round,
                "status": r.status,
                "replies": r.replies,
                "loss": r.held_out_loss,
                "failures": dict(r.failures),
            }
            for r in rounds
        ]
        show_json(
            {
                "run_id": run.run_id,
                "status": run.status,
                "reason": run.reason,
                "recipe": dict(run.recipe),
                "rounds": rows,
            }
        )
        return
    console.print(f"[bold]{run.run_id}[/]  {run.model}  {run.status}  {run.reason}")
    show_table(
        "Rounds",
        ("round", "status", "replies", "held-out loss", "left out"),
        [
            (
                r.server_round,
                r.status,
                r.replies,
                r.held_out_loss and f"{r.held_out_loss:.4f}",
                "\n".join(r.failures.values()),
            )
            for r in rounds
        ],
    )
    show_table("Recipe", ("key", "value"), sorted(run.recipe.items()))
