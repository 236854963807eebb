"""Updates, as a device sees them: is there something newer, and how did it go?"""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from delta_updates import (
    PROTOCOL_HEADER,
    ROOM_HEADER,
    Offer,
    Outcome,
    OutcomeReport,
    UpdateQuery,
    protocol_of,
)
from delta_updates.manifest import MAX_FILE_BYTES
from server.api.examples import MODEL, OFFER, OFFER_ID, OTHER_HASH, answer
from server.api.problems import declare
from server.api.services import CallingDevice, ClaimedDevice, Protocol, ServicesDep, require_key
from server.api.unchanged import TIME_BOUND
from server.api.update_check import UpdateCheck
from server.errors import ForbiddenError
from server.registry.transactions import NeedsDatabaseError

FreeBytes = Annotated[
    int | None,
    Header(
        alias=ROOM_HEADER,
        ge=0,
        le=MAX_FILE_BYTES,
        description="Disk bytes that the device has for an update, beside what it keeps free.",
        openapi_examples={"some": {"value": 250_000_000}},
    ),
]
router = APIRouter(prefix="/updates", tags=["device"])
_QUERY = {"model": MODEL, "installed_version": 2, "installed_hash": OTHER_HASH, "only_full": False}
_REPORT = {
    "offer_id": OFFER_ID,
    "version": 3,
    "outcome": "confirmed",
    "reason": "",
    "bytes_downloaded": 1_482_113,
    "apply_seconds": 0.9,
    "quality": {"loss_increase": -0.03, "tokens_per_second": 14.2, "memory_bytes": 402_653_184},
}
_FAILURES = frozenset({Outcome.FAILED, Outcome.REVERTED})
_REFUSALS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


@router.post(
    "/check",
    summary="Ask for an update",
    response_model=Offer,
    responses={
        200: answer("Go to this version with this package.", OFFER),
        204: {"description": "There is nothing to do. The ETag stands for this answer to this question."},
        304: {"description": "Still nothing to do (If-None-Match): the same question, and nothing has changed."},
        **declare(*_REFUSALS, HTTPStatus.CONFLICT),
    },
)
async def check(
    request: Request,
    services: ServicesDep,
    claim: ClaimedDevice,
    query: Annotated[UpdateQuery, Body(examples=[_QUERY])],
    spoken: Protocol = None,
    free_bytes: FreeBytes = None,
) -> Response:
    """Offer the version that a rollout gives this device, by the delta from what it has, or by the full package.

    A version that this device reverted is not offered to it again: the next release is. Full is offered when the device
    asks for it, when it has nothing, and when its hash is not that of the version it names. A version lower than what
    the device has is never offered, nor one that was withdrawn. Deltas over versions between (`chain`, from protocol 2
    on) are offered beside it where they are fewer bytes. A device that tells its free disk bytes is offered the package
    of fewest bytes among those that fit there; when none does, 409 says how much is missing. Only packages of a format
    that the device's protocol reads are offered; when there are none, 409 says to update the agent.
    """
    asking = await claim.arrive()
    require_key(services, asking.device)
    if query.model != asking.device.model:
        raise ForbiddenError(f"This device is enrolled for {asking.device.model!r}, not for {query.model!r}.")
    protocol = protocol_of(spoken)
    check = UpdateCheck(services=services, asking=asking, query=query, free_bytes=free_bytes, protocol=protocol)
    try:
        # No thread where nothing has to be read or written: most devices are told nothing by what others' checks read.
        with services.registry.from_memory():
            answer = check.answer()
    except NeedsDatabaseError:
        answer = await run_in_threadpool(check.answer)
    request.scope[TIME_BOUND] = answer.is_time_bound
    headers = {PROTOCOL_HEADER: str(protocol)}
    if answer.offer is None:
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)
    return JSONResponse(answer.offer.in_protocol(protocol), headers=headers)


@router.post(
    "/report",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Report how an update went",
    responses={
        204: {"description": "Noted. Repeating a report changes nothing."},
        **declare(*_REFUSALS, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    },
)
def report(
    services: ServicesDep, device: CallingDevice, report: Annotated[OutcomeReport, Body(examples=[_REPORT])]
) -> None:
    """Keep an outcome of one of the caller's own offers; an offer of another device does not exist for it."""
    rollout_id = services.registry.record_outcome(device.device_id, report)
    if rollout_id is not None:
        services.registry.settle_rollout(rollout_id, is_urgent=report.outcome in _FAILURES)
    services.metrics.count_outcome(report.outcome.value)
