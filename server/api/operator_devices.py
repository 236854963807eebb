"""For the operator: enrolment tokens and devices."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from delta_updates import EnrolmentFile
from delta_updates.manifest import ModelName
from server.api.callers import audited
from server.api.examples import (
    DEVICE,
    DEVICE_ID,
    ENROLMENT_TOKEN,
    MODEL,
    PAST_OFFER,
    REPORT,
    TIME,
    answer,
    page,
)
from server.api.problems import declare
from server.api.services import Page, PageLimit, Publisher, ServicesDep, Viewer, page_of
from server.enrolment import MAX_USES, make_enrolment_file
from server.registry import DeviceRecord, EnrolmentTokenRecord, OfferRecord, ReportRecord

router = APIRouter(tags=["operator: devices"])
_HISTORY = 100

DeviceId = Annotated[
    str,
    Path(
        pattern=r"^[0-9a-f]{32}$", description="The device's id.", openapi_examples={"a device": {"value": DEVICE_ID}}
    ),
]
TokenId = Annotated[
    int,
    Path(ge=1, le=2**31 - 1, description="The token's number.", openapi_examples={"a token": {"value": 7}}),
]


class EnrolmentRequest(BaseModel):
    """For which model devices shall be enrolled, and how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelName
    uses: int = Field(default=1, ge=1, le=MAX_USES, description="How many devices the token enrols.")


class Enrolment(BaseModel):
    """The file to hand to the devices, and the token's record."""

    file: EnrolmentFile
    token: EnrolmentTokenRecord


class DeviceHistory(BaseModel):
    """A device, its latest offers and what it reported about them, newest first."""

    device: DeviceRecord
    offers: tuple[OfferRecord, ...]
    reports: tuple[ReportRecord, ...]


_FILE = {
    "server_url": "https://updates.example.org",
    "model": MODEL,
    "token": "mB1yVxk2c8n3rQ0sT5uW7zA9dF4gH6jK-LpOiUyTrEw",
    "root": {"signatures": [], "signed": {"_type": "root", "version": 1, "expires": TIME}},
}


@router.post(
    "/enrolment-tokens",
    status_code=HTTPStatus.CREATED,
    summary="Make an enrolment file",
    responses={
        201: answer(
            "Hand `file` to the devices; its token is shown this once.", {"file": _FILE, "token": ENROLMENT_TOKEN}
        ),
        **declare(
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.FORBIDDEN,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
        ),
    },
)
def make_enrolment_token(
    services: ServicesDep,
    caller: Publisher,
    request: Annotated[EnrolmentRequest, Body(examples=[{"model": MODEL, "uses": 1}])],
) -> Enrolment:
    """Make a token with an expiry, for one device or for several, together with the root of trust that they pin."""
    subject = f"{request.model}, for {request.uses}"
    with audited(services.registry, caller, "enrolment.create", subject):
        file, token = make_enrolment_file(
            services.settings, services.registry, services.metadata, model=request.model, uses=request.uses
        )
    return Enrolment(file=file, token=token)


@router.get(
    "/enrolment-tokens",
    summary="List enrolment tokens",
    responses={
        200: answer(
            "Tokens in the order of their making, without the tokens themselves.", page(ENROLMENT_TOKEN, cursor="7")
        ),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def list_enrolment_tokens(
    services: ServicesDep,
    _: Viewer,
    limit: PageLimit = 100,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="`next` of the page before.", examples=[0])] = 0,
) -> Page[EnrolmentTokenRecord]:
    """List tokens: open, used and expired ones."""
    tokens = services.registry.enrolment_tokens(after=after, limit=limit)
    return page_of(tokens, limit=limit, cursor=str(tokens[-1].token_id) if tokens else None)


@router.post(
    "/enrolment-tokens/{token_id}/revoke",
    summary="Revoke an enrolment token",
    responses={
        200: answer(
            "The token; it enrols no further device.",
            {**ENROLMENT_TOKEN, "uses": 1, "used_at": TIME, "device_id": DEVICE_ID, "revoked_at": TIME},
        ),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def revoke_enrolment_token(services: ServicesDep, caller: Publisher, token_id: TokenId) -> EnrolmentTokenRecord:
    """Let a token enrol no further device; those that it enrolled stay."""
    with audited(services.registry, caller, "enrolment.revoke", str(token_id)):
        return services.registry.revoke_enrolment_token(token_id)


@router.get(
    "/devices",
    summary="List devices",
    responses={
        200: answer("Devices by id, revoked ones included.", page(DEVICE, cursor=DEVICE_ID)),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def list_devices(
    services: ServicesDep,
    _: Viewer,
    limit: PageLimit = 100,
    model: Annotated[ModelName | None, Query(description="Only devices of this model.", examples=[MODEL])] = None,
    after: Annotated[
        str, Query(pattern=r"^[0-9a-f]{0,32}$", description="`next` of the page before.", examples=[DEVICE_ID])
    ] = "",
) -> Page[DeviceRecord]:
    """List enrolled devices and what they last said they run."""
    devices = services.registry.devices(model=model, after=after, limit=limit)
    return page_of(devices, limit=limit, cursor=devices[-1].device_id if devices else None)


@router.get(
    "/devices/{device_id}",
    summary="Show a device and its history",
    responses={
        200: answer(
            f"The device, and its last {_HISTORY} offers and reports.",
            {"device": DEVICE, "offers": [PAST_OFFER], "reports": [REPORT]},
        ),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def show_device(services: ServicesDep, _: Viewer, device_id: DeviceId) -> DeviceHistory:
    """Show what a device runs, what it was offered and what it reported."""
    return DeviceHistory(
        device=services.registry.device(device_id),
        offers=services.registry.offers(device_id, limit=_HISTORY),
        reports=services.registry.reports(device_id, limit=_HISTORY),
    )


@router.post(
    "/devices/{device_id}/revoke",
    summary="Revoke a device",
    responses={
        200: answer("The device; its credential is refused from now on.", {**DEVICE, "revoked_at": TIME}),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def revoke_device(services: ServicesDep, caller: Publisher, device_id: DeviceId) -> DeviceRecord:
    """Refuse a device's credential for good; to come back it must be enrolled again."""
    with audited(services.registry, caller, "device.revoke", device_id):
        return services.registry.revoke_device(device_id)
