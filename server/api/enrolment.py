"""Enrolment: a one-time token becomes a device with a credential of its own."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Request

from delta_updates import EnrolReply, EnrolRequest
from server.api.examples import DEVICE_ID, answer
from server.api.problems import declare
from server.api.services import ServicesDep, address_of

router = APIRouter(tags=["device"])
_REQUEST = {"token": "mB1yVxk2c8n3rQ0sT5uW7zA9dF4gH6jK-LpOiUyTrEw", "name": "kitchen-tablet"}
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
    services: ServicesDep, http: Request, request: Annotated[EnrolRequest, Body(examples=[_REQUEST])]
) -> EnrolReply:
    """Trade an enrolment token, which works a limited number of times and for a limited time, for a credential.

    An address that showed many tokens that are no good has to wait; a whole fleet behind one address can enrol.
    """
    refused = services.throttles.enrolments
    address = address_of(http)
    refused.require(address, of="enrolment tokens from here that are no good")
    device, credential = services.registry.enrol(request.token, name=request.name)
    refused.give_back(address)
    return EnrolReply(device_id=device.device_id, credential=credential)
