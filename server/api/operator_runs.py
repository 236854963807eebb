"""For the operator: federated runs, their rounds, and the privacy events they were charged with."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from delta_updates.manifest import ModelName
from privacy.audits import Verdict, worst_verdict
from privacy.event import PrivacyEvent
from server.api.examples import EVENT_ID, HEALTH, MODEL, PRIVACY_EVENT, ROUND, RUN, answer, page
from server.api.privacy_examples import FINDINGS
from server.api.problems import declare
from server.api.services import Page, PageLimit, ServicesDep, Viewer, page_of
from server.api.tagged import answer_tagged
from server.federation.health import RunHealth
from server.registry import RoundRecord, RunRecord
from server.registry.audit_findings import FindingRecord

router = APIRouter(tags=["operator: federation"])
_IDENTIFIER = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$"

RunId = Annotated[
    str, Path(pattern=_IDENTIFIER, description="The run's id.", openapi_examples={"a run": {"value": "run-1"}})
]


class RunDetail(BaseModel):
    """A run and its rounds, in order; `health` adds up what their facts say about hostile or broken devices."""

    run: RunRecord
    rounds: tuple[RoundRecord, ...]
    health: RunHealth


class RunFindings(BaseModel):
    """What audits found about a run, in the order of asking."""

    run_id: str
    verdict: Verdict | None = Field(description="The worst of them; null while nothing was measured.")
    findings: tuple[FindingRecord, ...]


@router.get(
    "/runs",
    summary="List federated runs",
    responses={
        200: answer("Runs, newest first.", page(RUN, cursor="run-1")),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def list_runs(
    services: ServicesDep,
    _: Viewer,
    limit: PageLimit = 100,
    model: Annotated[ModelName | None, Query(description="Only runs of this model.", examples=[MODEL])] = None,
    after: Annotated[
        str | None, Query(pattern=_IDENTIFIER, description="`next` of the page before.", examples=["run-1"])
    ] = None,
) -> Page[RunRecord]:
    """List runs with their recipe and how they ended."""
    runs = services.registry.runs(model, after=after, limit=limit)
    return page_of(runs, limit=limit, cursor=runs[-1].run_id if runs else None)


@router.get(
    "/runs/{run_id}",
    summary="Show a run and its rounds",
    responses={
        200: answer("The run.", {"run": RUN, "rounds": [ROUND], "health": HEALTH}),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def show_run(services: ServicesDep, _: Viewer, run_id: RunId) -> RunDetail:
    """Show a run, and for each round its replies, failures and held-out loss.

    A round's `facts` count its refused replies by kind and describe the norms of the others; these are an operator's
    view of single devices, and are not for release. `masked` is there when a secure sum stayed masked: in which
    exchange (`phase`), how many were asked and answered, and the reason.
    """
    rounds = services.registry.rounds(run_id)
    return RunDetail(run=services.registry.run(run_id), rounds=rounds, health=RunHealth.of(rounds))


@router.get(
    "/runs/{run_id}/findings",
    summary="Show what audits found about a run",
    response_model=RunFindings,
    responses={
        200: answer("The findings; none where the run was not audited.", FINDINGS),
        304: {"description": "Nothing was found since (If-None-Match)."},
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def show_findings(services: ServicesDep, _: Viewer, request: Request, run_id: RunId) -> Response:
    """Show each audit's verdict with the value, interval, sample and control that it rests on.

    `detail` holds the whole measurement of a membership audit. A bound that is open is the text `Infinity`.
    """
    run = services.registry.run(run_id)
    found = services.registry.audit_findings(run.run_id)
    worst = worst_verdict(record.finding for record in found)
    return answer_tagged(RunFindings(run_id=run.run_id, verdict=worst, findings=found), request)


@router.get(
    "/privacy-events",
    summary="List privacy events",
    responses={
        200: answer("Events in the order in which they were recorded.", page(PRIVACY_EVENT, cursor=EVENT_ID)),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def list_privacy_events(
    services: ServicesDep,
    _: Viewer,
    limit: PageLimit = 100,
    run_id: Annotated[
        str | None, Query(pattern=_IDENTIFIER, description="Only of this run.", examples=["run-1"])
    ] = None,
    device_id: Annotated[
        str | None, Query(pattern=_IDENTIFIER, description="Only of this device.", examples=["user-17"])
    ] = None,
    model: Annotated[ModelName | None, Query(description="Only of this model's runs.", examples=[MODEL])] = None,
    after: Annotated[
        str | None,
        Query(
            pattern=r"^[0-9a-f]{32}$",
            description="`next` of the page before.",
            examples=[EVENT_ID],
        ),
    ] = None,
) -> Page[PrivacyEvent]:
    """List what the privacy loss is recomputed from; the ledger is append-only."""
    events = services.registry.privacy_events(run_id=run_id, device_id=device_id, model=model, after=after, limit=limit)
    return page_of(events, limit=limit, cursor=events[-1].event_id if events else None)
