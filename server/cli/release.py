"""`lamella release` and `lamella versions`: from a run's last round to a signed release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.auditing import audited
from server.cli.candidate import make_candidate, measured_again, show_groups
from server.cli.console import Service, console, megabytes, open_service, show_json, show_table, words_aside
from server.cli.rollout_options import (
    AsJson,
    Channel,
    Failure,
    Groups,
    IsDraft,
    MinReports,
    Phases,
    SoakHours,
    Success,
    Tags,
    describe,
    launch_of,
    print_json,
)
from server.errors import PublishingError
from server.rollouts import AT_ONCE, STABLE

if TYPE_CHECKING:
    from server.publishing import Gate, GateResult
    from server.registry import RunRecord, VersionRecord
    from server.rollouts import Launch


def release(
    run_id: Annotated[str, typer.Argument(help="Run id, from `lamella runs list`.")],
    margin: Annotated[
        float | None, typer.Option(help="Nats by which the held-out loss may rise (LAMELLA_GATE_MARGIN).")
    ] = None,
    worst_group_margin: Annotated[
        float | None,
        typer.Option(
            help="Nats by which any group's may, beyond chance (LAMELLA_GATE_WORST_GROUP_MARGIN); unset: no bound.",
            min=0,
        ),
    ] = None,
    above: Annotated[
        int,
        typer.Option(help="Number the version above this one: the way out for devices that a thief took there.", min=0),
    ] = 0,
    rollout: Phases = None,
    channel: Channel = STABLE,
    group: Groups = None,
    tag: Tags = None,
    soak: SoakHours = None,
    success: Success = None,
    failure: Failure = None,
    min_reports: MinReports = None,
    is_draft: IsDraft = False,
    as_json: AsJson = False,
) -> None:
    """Turn a run's adapter into a version: gate, packages that are applied and compared, signatures, release.

    Every device of the channel gets it at its next check, unless a rollout says otherwise.
    """
    words_aside(as_json)
    launch = launch_of(
        phases=rollout,
        channel=channel,
        groups=group,
        tags=tag,
        is_draft=is_draft,
        soak_hours=soak,
        success_threshold=success,
        failure_threshold=failure,
        min_reports=min_reports,
    )
    service = open_service()
    run = service.registry.run(run_id)
    with audited(service.registry, "version.release", f"{run.model}, run {run_id}", is_long=True):
        _release(service, run, gate=_gate(service, margin, worst_group_margin), above=above, launch=launch)
    record = service.registry.latest_released(run.model)
    if record is not None:
        show_packages(service, record)
        say_who_gets_it(service, record)
        if as_json:
            print_json(_facts(service, record))


def _facts(service: Service, record: VersionRecord) -> dict[str, object]:
    """A release as programs read it."""
    rollouts = [one for one in service.registry.rollouts(model=record.model) if one.version == record.number]
    packages = service.registry.packages(record.model, record.number)
    return {
        "model": record.model,
        "version": record.number,
        "state": record.state,
        "tree_hash": record.manifest.tree_hash,
        "gate": record.gate,
        "packages": [{"source_version": p.source_version, "path": p.path, "bytes": p.length} for p in packages],
        "rollouts": rollouts,
    }


def _gate(service: Service, margin: float | None, worst_group_margin: float | None) -> Gate:
    from server.publishing import Gate

    settings = service.settings
    return Gate(
        margin=settings.gate_margin if margin is None else margin,
        worst_group_margin=settings.gate_worst_group_margin if worst_group_margin is None else worst_group_margin,
    )


def _release(service: Service, run: RunRecord, *, gate: Gate, above: int, launch: Launch) -> None:
    known = [v for v in service.registry.versions(run.model) if v.run_id == run.run_id and v.state != "rejected"]
    if known and known[0].state == "released" and launch != AT_ONCE:
        raise PublishingError(
            f"v{known[0].number} of {run.model!r} is released already. Roll it out further: `lamella rollout create`."
        )
    if known and (known[0].state != "candidate" or known[0].gate is not None):
        # An earlier attempt was cut off after the gate, or there is nothing left to do: publishing knows.
        publish_version(service, known[0], gate=None, launch=launch)
        return
    service.metadata.unlock_releases()  # before minutes of measuring
    if known:  # cut off before its gate was written down
        candidate, result = known[0], measured_again(service, run, known[0], gate=gate)
    else:
        candidate, result = make_candidate(service, run, gate=gate, above=above)
    console.print(
        f"Gate: held-out loss {result.parent_loss:.4f} → {result.candidate_loss:.4f} "
        f"(may rise by {result.margin:g}): {'passed' if result.is_passed else 'failed'}"
    )
    show_groups(result)
    publish_version(service, candidate, gate=result, launch=launch)


def versions(
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List versions with their lineage and packages."""
    registry = open_service().registry
    models = [model] if model else registry.models()
    rows = [(v, registry.packages(v.model, v.number)) for name in models for v in registry.versions(name)]
    if as_json:
        show_json(
            [
                v.manifest.model_dump(exclude={"files"})
                | {"state": v.state, "reason": v.reason, "packages": {p.path: p.length for p in packages}}
                for v, packages in rows
            ]
        )
        return
    show_table(
        "Versions",
        ("version", "kind", "parent", "state", "adapter", "held-out loss", "ε", "packages"),
        [
            (
                f"{v.model} v{v.number}",
                v.manifest.kind,
                v.manifest.parent and f"v{v.manifest.parent}",
                v.state + (f": {v.reason}" if v.reason else ""),
                v.manifest.facts.get("adapter_format"),
                v.manifest.facts.get("held_out_loss"),
                v.manifest.facts.get("epsilon"),
                "\n".join(f"{_from(p.source_version)} {megabytes(p.length)}" for p in packages),
            )
            for v, packages in rows
        ],
    )


def publish_version(
    service: Service, record: VersionRecord, *, gate: GateResult | None, launch: Launch = AT_ONCE
) -> None:
    """Publish a candidate while telling every step."""
    from server.publishing import publish

    if record.state != "released":
        service.metadata.unlock_releases()  # a question for the passphrase, before the spinner
    with console.status("Publishing ...") as status:
        publish(
            service.registry,
            service.artifacts,
            service.metadata,
            model=record.model,
            version=record.number,
            gate=gate,
            work=service.settings.work_dir,
            on_step=lambda text, done, total: status.update(f"Publishing ({done}/{total}): {text} ..."),
            launch=launch,
            max_epsilon=service.settings.release_max_epsilon,
            is_audit_required=service.settings.require_audit,
        )


def say_who_gets_it(service: Service, record: VersionRecord) -> None:
    """Print the rollouts of a release that are not everybody's on the stable channel at once."""
    for rollout in service.registry.rollouts(model=record.model):
        if rollout.version == record.number and (rollout.state != "finished" or rollout.plan != AT_ONCE.plan):
            console.print(describe(rollout))


def show_packages(service: Service, record: VersionRecord) -> None:
    """Print a release's packages beside its size."""
    packages = service.registry.packages(record.model, record.number)
    full = sum(entry.length for entry in record.manifest.files)
    show_table(
        f"Released {record.model} v{record.number} ({megabytes(full)} installed)",
        ("package", "size", "of the full one", "built and applied in"),
        [
            (
                _from(p.source_version),
                megabytes(p.length),
                f"{p.length / packages[0].length:.3%}",
                f"{p.facts['build_seconds']:.1f} s, {p.facts['apply_seconds']:.1f} s",
            )
            for p in packages
        ],
    )


def _from(source_version: int | None) -> str:
    return "full" if source_version is None else f"delta from v{source_version}"
