"""For the operator: rollouts, made, watched and stopped."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from delta_updates.manifest import ModelName, VersionNumber
from server.api.callers import audited
from server.api.examples import MODEL, answer, page
from server.api.problems import declare
from server.api.rollout_examples import CHANGE, DECLINE, FAILURE, PLAN, PROGRESS, ROLLOUT
from server.api.services import Page, PageLimit, Publisher, ServicesDep, Viewer, page_of
from server.registry import RolloutChangeRecord, RolloutFailureRecord, RolloutProgress
from server.rollouts import Action, Launch, Rollout, RolloutPlan, RolloutState

router = APIRouter(prefix="/rollouts", tags=["operator: rollouts"])
_BODY_REFUSALS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)

RolloutId = Annotated[
    int, Path(ge=1, le=2**31 - 1, description="The rollout's id.", openapi_examples={"a rollout": {"value": 7}})
]


class RolloutRequest(BaseModel):
    """A version that is released, and how it shall be rolled out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName
    version: VersionNumber
    plan: RolloutPlan = RolloutPlan()
    is_started: bool = Field(default=False, description="Whether it runs at once; otherwise it is a draft.")


class ActionRequest(BaseModel):
    """On which revision the operator decided, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None, description="The revision that was looked at; another one by now is a conflict."
    )
    reason: Annotated[str, Field(max_length=500)] = ""


class RolloutDetail(BaseModel):
    """A rollout, its devices' reports, why some failed or declined (most frequent first), and its changes in order."""

    progress: RolloutProgress
    failures: tuple[RolloutFailureRecord, ...]
    declines: tuple[RolloutFailureRecord, ...]
    changes: tuple[RolloutChangeRecord, ...]


@router.post(
    "",
    status_code=HTTPStatus.CREATED,
    summary="Make a rollout",
    responses={
        201: answer("The rollout.", {**ROLLOUT, "phase": 0, "reason": "started", "revision": 1}),
        **declare(*_BODY_REFUSALS),
    },
)
def create_rollout(
    services: ServicesDep,
    caller: Publisher,
    request: Annotated[
        RolloutRequest, Body(examples=[{"model": MODEL, "version": 3, "plan": PLAN, "is_started": True}])
    ],
) -> Rollout:
    """Make a rollout of a released version; devices are moved once it is started."""
    launch = Launch(plan=request.plan, state="running" if request.is_started else "draft")
    with audited(services.registry, caller, "rollout.create", f"{request.model} v{request.version}"):
        return services.registry.create_rollout(request.model, request.version, launch)


@router.get(
    "",
    summary="List rollouts",
    responses={
        200: answer("Rollouts, newest first.", page(ROLLOUT, cursor="7")),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def list_rollouts(
    services: ServicesDep,
    _: Viewer,
    limit: PageLimit = 100,
    model: Annotated[ModelName | None, Query(description="Only rollouts of this model.", examples=[MODEL])] = None,
    state: Annotated[
        RolloutState | None, Query(description="Only rollouts in this state.", examples=["running"])
    ] = None,
    after: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="`next` of the page before.", examples=[7])
    ] = None,
) -> Page[Rollout]:
    """List rollouts of all models; a release without one of its own has a finished one."""
    rollouts = services.registry.rollouts(model=model, state=state, before=after, limit=limit)
    return page_of(rollouts, limit=limit, cursor=str(rollouts[-1].rollout_id) if rollouts else None)


@router.get(
    "/{rollout_id}",
    summary="Show a rollout and its progress",
    responses={
        200: answer(
            "The rollout as it is now.",
            {"progress": PROGRESS, "failures": [FAILURE], "declines": [DECLINE], "changes": [CHANGE]},
        ),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def show_rollout(services: ServicesDep, _: Viewer, rollout_id: RolloutId) -> RolloutDetail:
    """Show how many devices took the version, failed or declined it, what it waits for, and what became of it."""
    services.registry.settle_rollout(rollout_id)
    return RolloutDetail(
        progress=services.registry.rollout_progress(rollout_id),
        failures=services.registry.rollout_failures(rollout_id),
        declines=services.registry.rollout_declines(rollout_id),
        changes=services.registry.rollout_changes(rollout_id),
    )


@router.post(
    "/{rollout_id}/{action}",
    summary="Start, pause, resume, halt or advance a rollout",
    responses={200: answer("The rollout after it.", ROLLOUT), **declare(*_BODY_REFUSALS)},
)
def change_rollout(
    services: ServicesDep,
    caller: Publisher,
    rollout_id: RolloutId,
    action: Annotated[Action, Path(description="What to do.", openapi_examples={"stop": {"value": "halt"}})],
    request: Annotated[ActionRequest, Body(examples=[{"revision": 2, "reason": "answers became shorter"}])],
) -> Rollout:
    """Change a rollout; a halt is for good. Of two operators who looked at the same revision, one gets a conflict."""
    with audited(services.registry, caller, f"rollout.{action}", str(rollout_id)):
        return services.registry.change_rollout(
            rollout_id, action, seen_revision=request.revision, reason=request.reason
        )
