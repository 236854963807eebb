"""For the operator: what the channels of a model point at, and withdrawing a release."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from server.api.callers import audited
from server.api.examples import PACKAGE, VERSION, answer
from server.api.operator_versions import ModelPath, NumberPath, VersionDetail
from server.api.problems import declare
from server.api.rollout_examples import MOVE
from server.api.services import Publisher, ServicesDep, Viewer
from server.registry import ChannelMoveRecord

router = APIRouter(prefix="/models", tags=["operator: rollouts"])


class Channels(BaseModel):
    """What each channel points at, and all that they pointed at, oldest first within a channel."""

    channels: tuple[ChannelMoveRecord, ...]
    history: tuple[ChannelMoveRecord, ...]


class Withdrawal(BaseModel):
    """Why a release shall be offered no more; devices and operators read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: Annotated[str, Field(min_length=1, max_length=500)]


@router.get(
    "/{model}/channels",
    summary="Show a model's channels",
    responses={
        200: answer("The channels.", {"channels": [MOVE], "history": [MOVE]}),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def show_channels(services: ServicesDep, _: Viewer, model: ModelPath) -> Channels:
    """Show the version that everybody on each channel gets, with its history."""
    return Channels(channels=services.registry.channels(model), history=services.registry.channel_history(model))


@router.post(
    "/{model}/versions/{number}/withdraw",
    summary="Withdraw a release",
    responses={
        200: answer(
            "The version, which is offered no more.",
            {
                "version": {**VERSION, "state": "withdrawn", "reason": "answers in the wrong language"},
                "packages": [PACKAGE],
            },
        ),
        **declare(
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.FORBIDDEN,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
        ),
    },
)
def withdraw_version(
    services: ServicesDep,
    caller: Publisher,
    model: ModelPath,
    number: NumberPath,
    request: Annotated[Withdrawal, Body(examples=[{"reason": "answers in the wrong language"}])],
) -> VersionDetail:
    """Stop offering a release; its rollouts halt. Devices on it do not wait for their turn at the next release."""
    with audited(services.registry, caller, "version.withdraw", f"{model} v{number}"):
        services.registry.withdraw(model, number, reason=request.reason)
    return VersionDetail(
        version=services.registry.version(model, number), packages=services.registry.packages(model, number)
    )
