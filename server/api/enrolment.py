"""Enrolment: a one-time token becomes a device, and the device makes itself known by a key of its own."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from delta_updates import PROTOCOL_HEADER, EnrolReply, EnrolRequest, KeyRequest, protocol_of
from delta_updates.request_signature import from_text, key_proof
from server.api.examples import DEVICE_ID, answer
from server.api.problems import declare
from server.api.services import KnownDevice, Protocol, ServicesDep, address_of
from server.api.signatures import is_signed
from server.errors import ForbiddenError

router = APIRouter(tags=["device"])
_REQUEST = {"token": "mB1yVxk2c8n3rQ0sT5uW7zA9dF4gH6jK-LpOiUyTrEw", "name": "kitchen-tablet"}
_KEY_REQUEST = {"public_key": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "proof": "A" * 86}
_REPLY = {"device_id": DEVICE_ID, "credential": f"{DEVICE_ID}.Zx8cV7bN6mA5sD4fG3hJ2kL1qW0eR9tY8uI7oP6aS5d"}


@router.post(
    "/devices",
    status_code=HTTPStatus.CREATED,
    summary="Enrol a device",
    responses={
        201: answer("The device's identity. The credential is shown this once.", _REPLY),
        **declare(
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.GONE,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.TOO_MANY_REQUESTS,
        ),
    },
)
def enrol(
    services: ServicesDep,
    http: Request,
    response: Response,
    request: Annotated[EnrolRequest, Body(examples=[_REQUEST])],
    spoken: Protocol = None,
) -> EnrolReply:
    """Trade an enrolment token, which works a limited number of times and for a limited time, for a credential.

    An address that showed many tokens that are no good has to wait; a whole fleet behind one address can enrol.
    """
    refused = services.throttles.enrolments
    address = address_of(http)
    refused.require(address, of="enrolment tokens from here that are no good")
    device, credential = services.registry.enrol(request.token, name=request.name)
    refused.give_back(address)
    response.headers[PROTOCOL_HEADER] = str(protocol_of(spoken))
    return EnrolReply(device_id=device.device_id, credential=credential)


@router.put(
    "/devices/me/key",
    status_code=HTTPStatus.NO_CONTENT,
    summary="Make a device's key known",
    responses={
        204: {"description": "From now on this device is known by signatures of this key alone."},
        **declare(
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.FORBIDDEN,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
            HTTPStatus.TOO_MANY_REQUESTS,
        ),
    },
)
def set_key(
    services: ServicesDep, device: KnownDevice, request: Annotated[KeyRequest, Body(examples=[_KEY_REQUEST])]
) -> None:
    """Replace the credential of the calling device, or its key before, by a key that never left it.

    Repeating the request, signed with the new key, changes nothing: a device whose answer was lost asks again.
    """
    if not is_signed(request.public_key, from_text(request.proof), key_proof(device.device_id, request.public_key)):
        raise ForbiddenError("The proof was not made with this key, or is for another device.")
    services.registry.set_device_key(device.device_id, request.public_key)
