"""hawkBit's direct device integration: fleets that run SWUpdate or another of its clients poll here unchanged.

The protocol is hawkBit's, not ours, so it is no part of the OpenAPI document; docs/hawkbit.md says what is supported.
"""

from datetime import UTC, datetime
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from server.api.ddi_access import CallingController, DdiRoute, controller_links
from server.api.services import ServicesDep
from server.api.streaming import answer_with_bytes
from server.artifacts import require_length
from server.ddi import (
    CancelFeedback,
    ConfigData,
    Feedback,
    cancel_document,
    deployment_document,
    find_file,
    is_forced,
    next_step,
    offered_files,
    root_document,
    take_cancel_feedback,
    take_feedback,
)
from server.errors import GoneError, InvalidRecordError, NotFoundError

router = APIRouter(prefix="/{tenant}/controller/v1/{controller_id}", include_in_schema=False, route_class=DdiRoute)
_MEDIA_TYPE = "application/hal+json;charset=UTF-8"
_Body = TypeVar("_Body", bound=BaseModel)

ActionId = Annotated[int, Path(ge=1, le=2**31 - 1)]


async def _raw_body(request: Request) -> bytes:
    return await request.body()


# Parsed by hand: clients differ in the content type that they name.
RawBody = Annotated[bytes, Depends(_raw_body)]


@router.get("")
def poll(services: ServicesDep, caller: CallingController) -> Response:
    """Say when to come again, and what there is to do."""
    device = caller.device
    services.seen.note(device.device_id)
    step = next_step(services.registry, device, now=datetime.now(UTC))
    return _answer(
        root_document(
            controller_links(services, caller),
            poll_seconds=services.settings.ddi_poll_seconds,
            deploy=step.deploy,
            cancel=step.cancel,
            is_config_wanted=caller.attributes is None,
        )
    )


@router.put("/configData")
@router.post("/configData")
def put_config_data(services: ServicesDep, caller: CallingController, body: RawBody) -> Response:
    """Keep what a controller says of itself, and what it runs when that is among it."""
    data = _parse(ConfigData, body)
    try:
        installed = data.installed
    except ValidationError as error:
        raise InvalidRecordError(_fault(error)) from None
    services.registry.set_attributes(caller.device.device_id, data.merged(dict(caller.attributes or {})))
    if installed is not None:
        services.registry.record_check(
            caller.device.device_id, installed_version=int(installed.version), installed_hash=installed.tree_hash
        )
    return Response()


@router.get("/deploymentBase/{action_id}")
def get_deployment(services: ServicesDep, caller: CallingController, action_id: ActionId) -> Response:
    """Say what to install: the version's files, and whether to ask first."""
    registry = services.registry
    action = registry.action(caller.device.device_id, action_id)
    if action.state in {"canceled", "closed"}:
        raise GoneError(f"Action {action_id} is over. Poll again.")
    offer = action.offer
    packages = registry.packages(offer.model, offer.version)
    package = next((one for one in packages if one.path == offer.package_path), None)
    if package is None or registry.target(package.path) is None:
        raise NotFoundError(f"v{offer.version} is not released any more. Poll again.")
    return _answer(
        deployment_document(
            controller_links(services, caller),
            action_id=action_id,
            model=offer.model,
            version=offer.version,
            is_forced=is_forced(registry, caller.device, action),
            files=offered_files(services.settings, registry, services.artifacts, package),
        )
    )


@router.post("/deploymentBase/{action_id}/feedback")
def post_feedback(services: ServicesDep, caller: CallingController, action_id: ActionId, body: RawBody) -> Response:
    """Keep how far a device came with an action; repeating it changes nothing."""
    take_feedback(services.registry, caller.device, action_id, _parse(Feedback, body))
    return Response()


@router.get("/cancelAction/{action_id}")
def get_cancellation(services: ServicesDep, caller: CallingController, action_id: ActionId) -> Response:
    """Say which action to give up."""
    if services.registry.action(caller.device.device_id, action_id).state != "canceling":
        raise GoneError(f"Action {action_id} is not being canceled. Poll again.")
    return _answer(cancel_document(action_id))


@router.post("/cancelAction/{action_id}/feedback")
def post_cancel_feedback(
    services: ServicesDep, caller: CallingController, action_id: ActionId, body: RawBody
) -> Response:
    """Keep whether a device gave an action up."""
    take_cancel_feedback(services.registry, caller.device, action_id, _parse(CancelFeedback, body))
    return Response()


@router.head("/softwaremodules/{version}/artifacts/{name}")
@router.get("/softwaremodules/{version}/artifacts/{name}")
def get_file(
    services: ServicesDep,
    caller: CallingController,
    request: Request,
    version: Annotated[int, Path(ge=1, le=999_999_999)],
    name: Annotated[str, Path(max_length=128)],
) -> Response:
    """Stream a file of a released version; one byte range may be asked for, with If-Range."""
    file = find_file(
        services.settings,
        services.registry,
        services.artifacts,
        model=caller.device.model,
        version=version,
        name=name,
    ).digests
    require_length(services.artifacts, file.sha256, file.length)
    return answer_with_bytes(
        lambda first, length: services.artifacts.chunks(file.sha256, first=first, length=length),
        method=request.method,
        request_headers=request.headers,
        length=file.length,
        sha256=file.sha256,
        media_type="application/octet-stream",
        cache_control="private, max-age=31536000, immutable",
    )


def _answer(document: dict[str, object]) -> Response:
    return JSONResponse(document, media_type=_MEDIA_TYPE)


def _parse(kind: type[_Body], body: bytes) -> _Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRecordError(_fault(error)) from None


def _fault(error: ValidationError) -> str:
    # What was sent is not echoed: it may be a secret in the wrong field.
    fault = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"] if str(part).isidentifier())
    return f"The body does not fit: {place or 'body'}: {fault['msg']}."
