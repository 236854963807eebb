"""`lamella runs`: what was trained, round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from server.cli.console import console, open_service, show_json, show_table

if TYPE_CHECKING:
    from server.federation.health import RoundHealth, RunHealth

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
    from server.federation.health import RoundHealth, RunHealth

    service = open_service()
    run, rounds = service.registry.run(run_id), service.registry.rounds(run_id)
    health = RunHealth.of(rounds)
    if as_json:
        rows = [
            {
                "round": r.server_round,
                "status": r.status,
                "replies": r.replies,
                "loss": r.held_out_loss,
                "failures": dict(r.failures),
                **RoundHealth.of(r.facts).model_dump(),
            }
            for r in rounds
        ]
        show_json(
            {
                "run_id": run.run_id,
                "status": run.status,
                "reason": run.reason,
                "recipe": dict(run.recipe),
                "health": health.model_dump(),
                "rounds": rows,
            }
        )
        return
    console.print(f"[bold]{run.run_id}[/]  {run.model}  {run.status}  {run.reason}")
    show_table(
        "Rounds",
        ("round", "status", "replies", "held-out loss", "update norms", "left out"),
        [
            (
                r.server_round,
                r.status,
                r.replies,
                r.held_out_loss and f"{r.held_out_loss:.4f}",
                _norms(RoundHealth.of(r.facts)),
                "\n".join(escape(reason) for reason in r.failures.values()),
            )
            for r in rounds
        ],
    )
    for r in rounds:
        if (masked := RoundHealth.of(r.facts).masked) is not None:
            console.print(
                f"Round {r.server_round}: {escape(masked.told)}.", style="yellow", highlight=False, soft_wrap=True
            )
    for line in _health_lines(health):
        console.print(line, style="yellow", highlight=False)
    show_table("Recipe", ("key", "value"), sorted(run.recipe.items()))


def _norms(health: RoundHealth) -> str:
    """A round's norms in a cell: the median, the ends, and who stands out."""
    norms = health.norms
    if norms is None:
        return ""
    lines = [f"{norms.median:.3g} ({norms.smallest:.3g} to {norms.largest:.3g})"]
    lines += [f"{escape(device)}: z {z:+.1f}" for device, z in norms.outliers.items()]
    lines += [f"{escape(device)}: set aside" for device in health.set_aside]
    return "\n".join(lines)


def _health_lines(health: RunHealth) -> list[str]:
    """What the rounds add up to, when there is something to say."""
    lines = []
    if health.refused:
        lines.append("Refused: " + ", ".join(f"{kind} {count}" for kind, count in health.refused.items()))
    for device, times in health.repeated_outliers.items():
        lines.append(f"The norm of {escape(device)} stood out in {times} rounds.")
    for device, times in health.set_aside.items():
        lines.append(f"The aggregation set {escape(device)} aside in {times} rounds.")
    return lines
