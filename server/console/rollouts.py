"""Rollouts: how far a version has come, how its devices fare, and the buttons that stop it."""

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response

from server.api.callers import audited, refuse_unless
from server.api.services import ServicesDep
from server.console.responses import ConsoleRoute, redirect, render
from server.console.visits import FormFields, PostingVisit, VisitDep
from server.errors import InvalidRecordError
from server.registry import Role
from server.rollouts import Action, RolloutState

router = APIRouter(route_class=ConsoleRoute)
_PAGE: Final = 50
_MAX_REASON: Final = 500
# What an operator may do in each state, the most usual first.
_ACTIONS: Final[dict[RolloutState, tuple[Action, ...]]] = {
    "draft": ("start", "halt"),
    "running": ("pause", "advance", "halt"),
    "paused": ("resume", "halt"),
    "halted": (),
    "finished": (),
}

RolloutId = Annotated[int, Path(ge=1, le=2**31 - 1)]


@router.get("/rollouts")
def rollouts(
    services: ServicesDep, visit: VisitDep, before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> Response:
    """All rollouts, the newest first."""
    found = services.registry.rollouts(before=before, limit=_PAGE + 1)
    shown = found[:_PAGE]
    return render(
        "rollouts.html",
        visit=visit,
        rollouts=shown,
        is_first=before is None,
        next=shown[-1].rollout_id if len(found) > _PAGE else None,
    )


@router.get("/rollouts/{rollout_id}")
def rollout(services: ServicesDep, visit: VisitDep, rollout_id: RolloutId) -> Response:
    """One rollout as it is now."""
    registry = services.registry
    registry.settle_rollout(rollout_id)
    progress = registry.rollout_progress(rollout_id)
    return render(
        "rollout.html",
        visit=visit,
        progress=progress,
        rollout=progress.rollout,
        failures=registry.rollout_failures(rollout_id),
        declines=registry.rollout_declines(rollout_id),
        changes=registry.rollout_changes(rollout_id)[::-1],
        actions=_ACTIONS[progress.rollout.state],
    )


@router.post("/rollouts/{rollout_id}/{action}")
def change(
    services: ServicesDep, visit: PostingVisit, fields: FormFields, rollout_id: RolloutId, action: Action
) -> Response:
    """Start, pause, resume, advance or halt what the operator looked at."""
    name = f"rollout.{action}"
    refuse_unless(services.registry, visit.caller, Role.PUBLISHER, action=name)
    revision, reason = fields.get("revision", ""), fields.get("reason", "").strip()[:_MAX_REASON]
    if not (revision.isascii() and revision.isdigit() and len(revision) <= 9):  # noqa: PLR2004 - digits of a 32-bit id
        raise InvalidRecordError("This form does not say which revision was looked at. Open the page again.")
    with audited(services.registry, visit.caller, name, str(rollout_id)):
        services.registry.change_rollout(rollout_id, action, seen_revision=int(revision), reason=reason)
    return redirect(f"/console/rollouts/{rollout_id}")
