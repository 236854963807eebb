"""For the operator: tokens of devices that speak hawkBit's protocol, and how those devices call themselves."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field

from delta_updates.manifest import ModelName
from server.api.callers import audited
from server.api.ddi_access import ControllerId
from server.api.examples import DEVICE, MODEL, TIME, answer, page
from server.api.operator_devices import TokenId
from server.api.operator_versions import ModelPath
from server.api.problems import declare
from server.api.services import Admin, Page, PageLimit, Publisher, ServicesDep, Viewer, page_of
from server.registry import ControllerRecord, GatewayTokenRecord

router = APIRouter(prefix="/ddi", tags=["operator: devices"])

_CONTROLLER = {"controller_id": "gate-7", "device": {**DEVICE, "name": "gate-7"}, "attributes": {"hw": "rev-b"}}
_GATEWAY = {
    "token_id": 7,
    "model": MODEL,
    "device_limit": 500,
    "devices": 31,
    "created_at": TIME,
    "revoked_at": None,
}
_TOKEN = "5d0f" * 16
_REFUSALS = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
_MOST_DEVICES = 10_000_000


class TargetToken(BaseModel):
    """A controller's own token, and the controller."""

    token: str
    controller: ControllerRecord


class GatewayTokenRequest(BaseModel):
    """For which model, and how many controllers may enrol themselves with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName
    device_limit: int = Field(default=1000, ge=0, le=_MOST_DEVICES, description="How many unknown controllers enrol.")


class GatewayToken(BaseModel):
    """A gateway token, and its record."""

    token: str
    record: GatewayTokenRecord


@router.get(
    "/{model}/controllers",
    summary="List the devices that speak hawkBit's protocol",
    responses={
        200: answer("Controllers by name, and what they say of themselves.", page(_CONTROLLER, cursor="gate-7")),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def list_controllers(
    services: ServicesDep,
    _: Viewer,
    model: ModelPath,
    limit: PageLimit = 100,
    after: Annotated[
        str,
        Query(pattern=r"^[A-Za-z0-9._:@+-]{0,64}$", description="`next` of the page before.", examples=["gate-7"]),
    ] = "",
) -> Page[ControllerRecord]:
    """List controllers, without those whose device was revoked."""
    found = services.registry.controllers(model=model, after=after, limit=limit)
    return page_of(found, limit=limit, cursor=found[-1].controller_id if found else None)


@router.post(
    "/{model}/controllers/{controller_id}/target-token",
    status_code=HTTPStatus.CREATED,
    summary="Make a controller's own token",
    responses={
        201: answer(
            "The token, shown this once; one that it had before is no good any more.",
            {"token": _TOKEN, "controller": _CONTROLLER},
        ),
        **declare(*_REFUSALS),
    },
)
def make_target_token(
    services: ServicesDep, caller: Publisher, model: ModelPath, controller_id: ControllerId
) -> TargetToken:
    """Make a token for one controller, and enrol it when it is new."""
    with audited(services.registry, caller, "ddi.target-token", f"{model}: {controller_id}"):
        token, controller = services.registry.issue_target_token(model, controller_id)
    return TargetToken(token=token, controller=controller)


@router.get(
    "/gateway-tokens",
    summary="List gateway tokens",
    responses={
        200: answer("All of them in the order of their making, without the tokens themselves.", [_GATEWAY]),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN),
    },
)
def list_gateway_tokens(services: ServicesDep, _: Viewer) -> tuple[GatewayTokenRecord, ...]:
    """List gateway tokens, revoked ones too, and how many devices came by each."""
    return services.registry.gateway_tokens()


@router.post(
    "/gateway-tokens",
    status_code=HTTPStatus.CREATED,
    summary="Make a gateway token",
    responses={
        201: answer("The token, shown this once.", {"token": _TOKEN, "record": {**_GATEWAY, "devices": 0}}),
        **declare(*_REFUSALS, HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    },
)
def make_gateway_token(
    services: ServicesDep,
    caller: Admin,
    request: Annotated[GatewayTokenRequest, Body(examples=[{"model": MODEL, "device_limit": 500}])],
) -> GatewayToken:
    """Make a token with which controllers of a model enrol themselves. It speaks for every one of them."""
    subject = f"{request.model}, for {request.device_limit}"
    with audited(services.registry, caller, "ddi.gateway-token", subject):
        token, record = services.registry.issue_gateway_token(request.model, device_limit=request.device_limit)
    return GatewayToken(token=token, record=record)


@router.post(
    "/gateway-tokens/{token_id}/revoke",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Revoke a gateway token",
    responses={
        204: {"description": "Nobody enrols with it any more, and who enrolled with it needs another token."},
        **declare(*_REFUSALS),
    },
)
def revoke_gateway_token(services: ServicesDep, caller: Publisher, token_id: TokenId) -> None:
    """Refuse a gateway token from now on."""
    with audited(services.registry, caller, "ddi.revoke-gateway", str(token_id)):
        services.registry.revoke_gateway_token(token_id)
