"""`lamella privacy`: planning, the report of a run, and recomputing one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import privacy_audit, privacy_ledger, privacy_plan
from server.cli.console import Service, console, open_service, problems
from server.federation.recipe import Recipe

if TYPE_CHECKING:
    from privacy.audits import MembershipResult
    from privacy.report import RunFacts, UtilityFigure
    from server.registry import RoundRecord, RunRecord, VersionRecord

_NOT_A_PARAMETER = {"fleet", "run-name", "resume-run"}

app = typer.Typer(no_args_is_help=True, help="Plan what a run costs; write a run's privacy report, recompute one.")
app.command()(privacy_plan.epsilon)
app.command()(privacy_plan.plan)
app.command()(privacy_ledger.ledger)
app.command()(privacy_ledger.budget)
app.command()(privacy_audit.audit)


@app.command()
def report(
    run_id: Annotated[str, typer.Argument(help="Run id, from `lamella runs list`.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: reports/RUN in the server's home.")
    ] = None,
    audit_examples: Annotated[
        int, typer.Option(help="Members, and as many others, for the membership measurement; 0 leaves it out.", min=0)
    ] = 200,
) -> None:
    """Write report.html, report.md, report.json and ledger.jsonl for a run; ε is recomputed from the ledger's events.

    The membership measurement needs the text that devices trained on, so it runs on a simulated fleet only.
    """
    from privacy.budget import PrivacyBudget
    from privacy.report import build_report, write_report

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
        written = build_report(
            title=f"Privacy report: {run.model}, run {run.run_id}",
            run=_facts(service, run, recipe, rounds, release),
            # Of the whole model, not of this run: what earlier runs spent on the same people is spent.
            events=service.registry.privacy_events(model=run.model),
            target_delta=recipe.target_delta,
            budget=PrivacyBudget(target_epsilon=recipe.target_epsilon, target_delta=recipe.target_delta),
            user_budget=service.registry.user_budget(run.model),
            membership=membership,
            findings=[one.finding for one in known],
            utility=_utility(release),
            provenance=_provenance(run, release),
        )
        paths = write_report(written, out or service.settings.home / "reports" / run_id)
    worst = f"the worst of {len(written.devices)} devices (budget {recipe.target_epsilon:g})"
    console.print(f"ε ≤ {written.epsilon_max:.3f} at δ = {written.target_delta:g} for {worst}")
    console.print(
        f"Report: {paths.html}\nRecompute it anywhere: python -m privacy recompute {paths.html.parent}", soft_wrap=True
    )


@app.command()
def recompute(folder: Annotated[Path, typer.Argument(help="A report's folder.", exists=True, file_okay=False)]) -> None:
    """Recompute ε from a report's ledger.jsonl and compare; exits with 1 on a difference."""
    from privacy.__main__ import main

    raise typer.Exit(main(["recompute", str(folder)]))


def _facts(
    service: Service, run: RunRecord, recipe: Recipe, rounds: tuple[RoundRecord, ...], release: VersionRecord | None
) -> RunFacts:
    from privacy.report import RunFacts

    return RunFacts(
        run_id=run.run_id,
        model=run.model,
        release=f"v{release.number}" if release else "(not released)",
        parent=f"v{run.parent_version}",
        base_hash=run.base_hash,
        rounds_planned=recipe.num_server_rounds,
        rounds_completed=sum(r.status == "released" for r in rounds),
        void_rounds=tuple(r.server_round for r in rounds if r.status == "void"),
        devices_enrolled=_fleet_size(service, run, recipe),
        settings={key: value for key, value in recipe.to_run_config().items() if key not in _NOT_A_PARAMETER},
        update_tensors=_update_tensors(service, rounds),
        incidents=tuple(f"round {r.server_round}: {why}" for r in rounds for why in r.failures.values()),
    )


def _fleet_size(service: Service, run: RunRecord, recipe: Recipe) -> int:
    """Devices that could have taken part: the simulated fleet, or who is enrolled for the model."""
    if recipe.fleet:
        from server.federation.fleet import users_of

        return len(users_of(Path(recipe.fleet)))
    return sum(device.model == run.model for device in service.registry.devices())


def _update_tensors(service: Service, rounds: tuple[RoundRecord, ...]) -> tuple:  # type: ignore[type-arg]
    """Names, shapes and bytes of what every device sent, read from the adapter that it has the shape of."""
    from safetensors.numpy import load

    from privacy.report import TensorFact
    from server.federation.adapter import ADAPTER

    released = [r for r in rounds if r.status == "released"]
    if not released:
        return ()
    state = load(service.artifacts.read_bytes(released[-1].artifacts[ADAPTER]))
    return tuple(
        TensorFact(name=name, shape=tensor.shape, dtype=str(tensor.dtype), num_bytes=tensor.nbytes)
        for name, tensor in sorted(state.items())
    )


def _utility(release: VersionRecord | None) -> tuple[UtilityFigure, ...]:
    from privacy.report import UtilityFigure

    if release is None or release.gate is None:
        return ()
    return (
        UtilityFigure(
            name="held-out loss, nats (lower is better)",
            before=release.gate.parent_loss,
            after=release.gate.candidate_loss,
            measured_on=str(release.manifest.facts.get("evaluation", "")),
        ),
    )


def _provenance(run: RunRecord, release: VersionRecord | None) -> dict[str, str]:
    facts = {"run": run.run_id, "base hash": run.base_hash, "started": run.started_at.isoformat(timespec="seconds")}
    if release is not None:
        facts |= {"release": f"{release.model} v{release.number}", "tree hash": release.manifest.tree_hash}
        if form := release.manifest.facts.get("adapter_format"):
            facts["adapter format"] = str(form)
    return facts


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
    return membership_audit(
        member_losses=evaluation.losses(adapter, lora, inside),
        member_base_losses=evaluation.losses_of_base(inside),
        non_member_losses=evaluation.losses(adapter, lora, outside),
        non_member_base_losses=evaluation.losses_of_base(outside),
    )
