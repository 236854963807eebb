"""Options that `lamella release` and `lamella rollout` share, and a rollout in a line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_jsonable_python

from server.cli.console import show_json
from server.errors import ConfigurationError
from server.rollouts import STABLE, Launch, parse_phases, parse_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.rollouts import Rollout

Phases = Annotated[
    str | None,
    typer.Option("--rollout", help="Phases in percent of the devices, as 10%,50%; the last is always 100%."),
]
Channel = Annotated[str, typer.Option(help="Devices of this channel; stable reaches every channel.")]
Groups = Annotated[list[str] | None, typer.Option("--group", help="Only devices of this group; may be repeated.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Only devices with this tag; repeated: with all.")]
SoakHours = Annotated[float | None, typer.Option("--soak", help="Hours that a phase lasts at least.", min=0)]
Success = Annotated[
    float | None, typer.Option(help="Share of the reports that must confirm before it goes on.", min=0, max=1)
]
Failure = Annotated[
    float | None, typer.Option(help="Share of the reports that failed or reverted at which it halts.", min=0, max=1)
]
MinReports = Annotated[int | None, typer.Option(help="Reports that a phase needs to go on.", min=1)]
IsDraft = Annotated[bool, typer.Option("--draft", help="Move no device before `lamella rollout start`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def launch_of(
    *,
    phases: str | None,
    channel: str = STABLE,
    groups: Sequence[str] | None,
    tags: Sequence[str] | None,
    is_draft: bool = False,
    **plan: object,
) -> Launch:
    """How a rollout begins: with phases it runs, as a draft it waits, otherwise it is everybody's at once.

    Args:
        phases: As typed, ``10%,50%``.
        channel: The channel.
        groups: Names of groups.
        tags: Names of tags.
        is_draft: Whether it waits to be started.
        plan: Further fields of `RolloutPlan`; None is its default.

    Raises:
        ConfigurationError: There are options for phases, and no phases.
        InvalidRecordError: These are no percentages, or the plan does not fit.
    """
    wanted = {name: value for name, value in plan.items() if value is not None}
    parsed = parse_plan(
        channel=channel, groups=tuple(groups or ()), tags=tuple(tags or ()), phases=_percentages(phases), **wanted
    )
    if is_draft:
        return Launch(plan=parsed, state="draft")
    if phases is None and wanted:
        raise ConfigurationError("These options are for a rollout in phases. Say which: --rollout 10%,50%.")
    return Launch(plan=parsed, state="finished" if phases is None else "running")


def describe(rollout: Rollout) -> str:
    """A rollout in a line."""
    plan = rollout.plan
    audience = " ".join(
        [f"channel {plan.channel}", *(f"group {name}" for name in plan.groups), *(f"tag {name}" for name in plan.tags)]
    )
    where = f"phase {rollout.phase + 1} of {len(plan.phases)} ({rollout.percentage:g}%)"
    reason = f": {rollout.reason}" if rollout.reason else ""
    what = f"Rollout {rollout.rollout_id}, {rollout.model} v{rollout.version} for {audience}"
    return f"{what}, {where}, {rollout.state}{reason}"


def print_json(value: object) -> None:
    """Print records and rollouts as JSON."""
    show_json(to_jsonable_python(value))


def _percentages(text: str | None) -> tuple[float, ...]:
    return (100.0,) if text is None else parse_phases(text)
