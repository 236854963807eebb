"""Enrolment: a one-time token becomes a device with a credential of its own."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body

from delta_updates import EnrolReply, EnrolRequest
from server.api.examples import DEVICE_ID, answer
from server.api.problems import declare
from server.api.services import ServicesDep

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
        ),
    },
)
def enrol(services: ServicesDep, request: Annotated[EnrolRequest, Body(examples=[_REQUEST])]) -> EnrolReply:
    """Trade an enrolment token, which works once and for a limited time, for a credential."""
    device, credential = services.registry.enrol(request.token, name=request.name)
    return EnrolReply(device_id=device.device_id, credential=credential)
