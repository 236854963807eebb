"""`lamella privacy`: planning, the report of a run, and recomputing one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import (
    privacy_audit,
    privacy_ledger,
    privacy_plan,
    privacy_plan_users,
    privacy_shares,
    privacy_statement,
)
from server.cli.console import Service, console, open_service, problems, show_json, words_aside
from server.cli.rollout_options import AsJson
from server.federation.recipe import Recipe

if TYPE_CHECKING:
    from privacy.audits import MembershipResult
    from server.registry import RoundRecord, RunRecord

app = typer.Typer(no_args_is_help=True, help="Plan what a run costs; write a run's privacy report, recompute one.")
app.command()(privacy_plan.epsilon)
app.command()(privacy_plan.plan)
app.command()(privacy_plan_users.plan_users)
app.command()(privacy_shares.shares)
app.command()(privacy_ledger.ledger)
app.command()(privacy_ledger.budget)
app.command()(privacy_audit.audit)
app.command()(privacy_statement.statement)
app.command()(privacy_statement.verify)


@app.command()
def report(
    run_id: Annotated[str, typer.Argument(help="Run id, from `lamella runs list`.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: reports/RUN in the server's home.")
    ] = None,
    audit_examples: Annotated[
        int, typer.Option(help="Members, and as many others, for the membership measurement; 0 leaves it out.", min=0)
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Write report.html, report.md, report.json and ledger.jsonl for a run; ε is recomputed from the ledger's events.

    The membership measurement needs the text that devices trained on, so it runs on a simulated fleet only.
    """
    words_aside(as_json)
    from privacy.report import write_report
    from server.privacy_report import report_of_run

    service = open_service()
    run, rounds = service.registry.run(run_id), service.registry.rounds(run_id)
    recipe = Recipe.from_run_config(run.recipe)
    release = next(
        (v for v in service.registry.versions(run.model) if v.run_id == run_id and v.state == "released"), None
    )
    known = service.registry.audit_findings(run_id)
    membership = next((one.detail for one in known if one.detail is not None), None)
    if membership is None and audit_examples and recipe.fleet and any(r.status == "released" for r in rounds):
        with console.status("Measuring membership inference on the simulated fleet ..."):
            membership = _membership(service, run, recipe, rounds, limit=audit_examples)
    with console.status("Recomputing ε from the ledger and drawing ..."):
        written = report_of_run(service.registry, service.artifacts, run, version=release, membership=membership)
        paths = write_report(written, out or service.settings.home / "reports" / run_id)
    worst = f"the worst of {len(written.devices)} devices (budget {recipe.target_epsilon:g})"
    console.print(f"ε ≤ {written.epsilon_max:.3f} at δ = {written.target_delta:g} for {worst}")
    console.print(
        f"Report: {paths.html}\nRecompute it anywhere: python -m privacy recompute {paths.html.parent}", soft_wrap=True
    )
    if as_json:
        show_json(
            {
                "folder": str(paths.html.parent),
                "verdict": written.verdict,
                "epsilon": written.epsilon_max if written.speaks_of_examples else None,
                "target_delta": written.target_delta,
                "user_epsilon": None if written.users is None else written.users.epsilon,
                "user_target_delta": None if written.users is None else written.users.target_delta,
            }
        )


@app.command()
def recompute(
    folder: Annotated[Path, typer.Argument(help="A report's folder.", exists=True, file_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Recompute ε from a report's ledger.jsonl and compare; exits with 1 on a difference."""
    from privacy.__main__ import main
    from privacy.recompute import compare

    if as_json:
        privacy_statement.tell_differences(lambda: compare(folder))
    raise typer.Exit(main(["recompute", str(folder)]))


def _membership(
    service: Service, run: RunRecord, recipe: Recipe, rounds: tuple[RoundRecord, ...], *, limit: int
) -> MembershipResult | None:
    """Compare examples of simulated devices that took part with examples of people who did not.

    Members are spread evenly over the devices; others are the newest held-out people of the same source.
    """
    from safetensors.numpy import load

    from model import held_out_examples, open_source
    from privacy.audits import membership_audit
    from server.evaluation import HeldOutEvaluation
    from server.federation.adapter import ADAPTER, lora_of
    from server.federation.bases import tree_of
    from server.federation.fleet import training_examples_of

    events = service.registry.privacy_events(model=run.model)
    took_part = {event.device_id for event in events if event.device_id} | {d for e in events for d in e.devices or ()}
    members = training_examples_of(Path(recipe.fleet), took_part, max_examples=recipe.max_examples, limit=limit)
    others = held_out_examples(open_source(recipe.data), limit=len(members))
    members = members[: len(others)]
    if not members:
        problems.print("No membership measurement: the fleet's text is gone, or the source has no held-out people.")
        return None
    tree = tree_of(service.settings, service.registry, service.artifacts, model=run.model, version=run.base_version)
    evaluation = HeldOutEvaluation(tree, data=recipe.data, examples=1, max_length=recipe.max_length)
    digest = [r for r in rounds if r.status == "released"][-1].artifacts[ADAPTER]
    adapter, lora = load(service.artifacts.read_bytes(digest)), lora_of(recipe)
    inside, outside = evaluation.encode(members), evaluation.encode(others)
    of_members, of_others = (evaluation.losses_beside_base(group, lora)(adapter) for group in (inside, outside))
    return membership_audit(of_members, of_others)
