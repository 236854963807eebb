"""`lamella rollout`: move a fleet to a version in phases, watch it, stop it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from server.cli.auditing import audited
from server.cli.console import console, open_service, show_table
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
from server.rollouts import STABLE

if TYPE_CHECKING:
    from server.registry import RolloutProgress
    from server.rollouts import Action

app = typer.Typer(no_args_is_help=True, help="Rollouts: move a fleet to a version in phases, watch it, stop it.")
Id = Annotated[int, typer.Argument(help="Rollout id, from `lamella rollout list`.", min=1)]
Reason = Annotated[str, typer.Option(help="Why, for the others who look at it.")]
Model = Annotated[str, typer.Option(help="Name of the model in the registry.")]
Version = Annotated[int, typer.Option(help="Number of the version.", min=1)]


@app.command()
def create(
    model: Model,
    version: Version,
    rollout: Phases = None,
    channel: Channel = STABLE,
    group: Groups = None,
    tag: Tags = None,
    soak: SoakHours = None,
    success: Success = None,
    failure: Failure = None,
    min_reports: MinReports = None,
    max_loss_increase: Annotated[
        float | None, typer.Option(help="Halt when devices' loss rose by more than this, in nats a token.", min=0)
    ] = None,
    min_tokens_per_second: Annotated[
        float | None, typer.Option(help="Halt when devices' mean is below this.", min=0)
    ] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="Halt when devices' mean memory is above this.", min=0)
    ] = None,
    is_manual: Annotated[bool, typer.Option("--manual", help="Go on only by `lamella rollout advance`.")] = False,
    not_before: Annotated[
        datetime | None, typer.Option(metavar="TIME", help="Move no device before this time (UTC).")
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Move devices only in this time of day (UTC): 22:00-04:00.")
    ] = None,
    is_draft: IsDraft = False,
    as_json: AsJson = False,
) -> None:
    """Roll a released version out, e.g. one that is on a channel for testers to everybody."""
    limits = {"loss_increase": max_loss_increase, "tokens_per_second": min_tokens_per_second}
    limits["memory_bytes"] = None if max_memory_mb is None else max_memory_mb * 1e6
    quality = tuple({"metric": name, "limit": limit} for name, limit in limits.items() if limit is not None)
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
        quality=quality or None,
        is_automatic=False if is_manual else None,
        not_before=not_before and not_before.replace(tzinfo=UTC),
        window=window,
    )
    registry = open_service().registry
    with audited(registry, "rollout.create", f"{model} v{version}"):
        made = registry.create_rollout(model, version, launch)
    if as_json:
        print_json(made)
        return
    console.print(escape(describe(made)))


@app.command("list")
def list_(
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    state: Annotated[str | None, typer.Option(help="Only draft, running, paused, halted or finished ones.")] = None,
    as_json: AsJson = False,
) -> None:
    """List rollouts, newest first."""
    rollouts = open_service().registry.rollouts(model=model, state=state)
    if as_json:
        print_json(rollouts)
        return
    show_table(
        "Rollouts",
        ("id", "version", "for", "phase", "state", "reason"),
        [
            (
                r.rollout_id,
                f"{r.model} v{r.version}",
                " ".join((r.plan.channel, *r.plan.groups, *r.plan.tags)),
                f"{r.phase + 1}/{len(r.plan.phases)} {r.percentage:g}%",
                r.state,
                escape(r.reason),
            )
            for r in rollouts
        ],
    )


@app.command()
def show(rollout_id: Id, as_json: AsJson = False) -> None:
    """Show how a rollout's devices fare, what it waits for, and what became of it so far."""
    registry = open_service().registry
    registry.settle_rollout(rollout_id)
    progress, changes = registry.rollout_progress(rollout_id), registry.rollout_changes(rollout_id)
    failures, declines = registry.rollout_failures(rollout_id), registry.rollout_declines(rollout_id)
    if as_json:
        print_json({"progress": progress, "failures": failures, "declines": declines, "changes": changes})
        return
    console.print(escape(describe(progress.rollout)))
    if progress.rollout.state in {"running", "paused"}:
        console.print(escape(f"Now: {progress.outlook}."))
    _show_devices(progress)
    if failures:
        rows = [(failure.reports, failure.outcome, escape(failure.reason)) for failure in failures]
        show_table("Why it failed", ("reports", "outcome", "reason"), rows)
    if declines:
        show_table(
            "Why devices declined it, by their owners' limits",
            ("reports", "reason"),
            [(decline.reports, escape(decline.reason)) for decline in declines],
        )
    show_table(
        "Changes",
        ("revision", "when", "state", "phase", "why"),
        [(c.revision, f"{c.changed_at:%Y-%m-%d %H:%M}", c.state, c.phase + 1, escape(c.reason)) for c in changes],
    )


@app.command()
def start(rollout_id: Id, reason: Reason = "", as_json: AsJson = False) -> None:
    """Start a draft: its first phase begins."""
    _change(rollout_id, "start", reason, as_json=as_json)


@app.command()
def pause(rollout_id: Id, reason: Reason = "", as_json: AsJson = False) -> None:
    """Move no further device until it is resumed."""
    _change(rollout_id, "pause", reason, as_json=as_json)


@app.command()
def resume(rollout_id: Id, reason: Reason = "", as_json: AsJson = False) -> None:
    """Go on after a pause; the phase soaks anew."""
    _change(rollout_id, "resume", reason, as_json=as_json)


@app.command()
def halt(rollout_id: Id, reason: Reason = "", as_json: AsJson = False) -> None:
    """Stop a rollout for good; devices that have its version keep it."""
    _change(rollout_id, "halt", reason, as_json=as_json)


@app.command()
def advance(rollout_id: Id, reason: Reason = "", as_json: AsJson = False) -> None:
    """Begin the next phase now, without waiting for reports; after the last phase it is finished."""
    _change(rollout_id, "advance", reason, as_json=as_json)


@app.command()
def restore(
    model: Model,
    version: Annotated[int, typer.Option(help="The release whose contents shall come back.", min=1)],
    rollout: Phases = None,
    channel: Channel = STABLE,
    group: Groups = None,
    tag: Tags = None,
    soak: SoakHours = None,
    is_draft: IsDraft = False,
    as_json: AsJson = False,
) -> None:
    """Release the contents of an older version again, under a new number: versions never go down."""
    from server.cli.release import publish_version, say_who_gets_it, show_packages
    from server.publishing import restore as restore_version

    launch = launch_of(phases=rollout, channel=channel, groups=group, tags=tag, soak_hours=soak, is_draft=is_draft)
    service = open_service()
    service.metadata.unlock_releases()
    with audited(service.registry, "version.restore", f"{model} v{version}", is_long=True):
        candidate = restore_version(service.registry, model=model, version=version)
        publish_version(service, candidate, gate=candidate.gate, launch=launch)
    record = service.registry.version(model, candidate.number)
    if as_json:
        made = service.registry.rollouts(model=model, limit=1)[0]
        print_json({"version": record.number, "contents_of": version, "rollout": made})
        return
    show_packages(service, record)
    console.print(f"v{record.number} has the contents of v{version}.")
    say_who_gets_it(service, record)


def _change(rollout_id: int, action: Action, reason: str, *, as_json: bool) -> None:
    registry = open_service().registry
    # What is decided on is what is there now: somebody else's change in between is a conflict.
    with audited(registry, f"rollout.{action}", str(rollout_id)):
        seen = registry.rollout(rollout_id)
        changed = registry.change_rollout(rollout_id, action, seen_revision=seen.revision, reason=reason)
    if as_json:
        print_json(changed)
        return
    console.print(escape(describe(changed)))


def _show_devices(progress: RolloutProgress) -> None:
    columns = ("devices", "offered", "confirmed", "reverted", "failed", "declined", "succeeded")
    rows = [
        (
            name,
            *(counts.offered, counts.confirmed, counts.reverted, counts.failed, counts.declined),
            f"{counts.success_share:.1%}",
        )
        for name, counts in (("of this phase", progress.phase), ("of all phases", progress.total))
    ]
    show_table(f"Devices ({progress.remaining} do not run it yet)", columns, rows)
    if progress.quality:
        show_table(
            "What devices measured",
            ("metric", "mean", "devices"),
            [(name, f"{measured.mean:.6g}", measured.devices) for name, measured in progress.quality.items()],
        )
