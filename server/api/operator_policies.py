"""For the operator: channel, group and tags of a device, forcing and opting out, and why it gets what it gets."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from delta_updates.manifest import VersionNumber
from server.api.callers import audited
from server.api.examples import answer
from server.api.operator_devices import DeviceId
from server.api.problems import declare
from server.api.rollout_examples import EXPLANATION, POLICY
from server.api.services import Publisher, ServicesDep, Viewer
from server.offers import explain
from server.registry import DevicePolicyRecord, DeviceRecord
from server.rollouts import STABLE, Explanation
from server.rollouts.plan import Label
from server.way_told import told

router = APIRouter(prefix="/devices", tags=["operator: rollouts"])


class PolicyChange(BaseModel):
    """What shall change; what is not named stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: Label = STABLE
    group: Label | None = None
    tags: Annotated[tuple[Label, ...], Field(max_length=64)] = ()
    is_opted_out: bool = False
    forced_version: VersionNumber | None = None


class DeviceExplanation(BaseModel):
    """A device, what operators decided about it, and which version it shall have and why."""

    device: DeviceRecord
    policy: DevicePolicyRecord
    explanation: Explanation
    packages: tuple[str, ...]


@router.patch(
    "/{device_id}/policy",
    summary="Change a device's channel, group, tags, force or opt-out",
    responses={
        200: answer("All that is decided about the device now.", POLICY),
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
def change_policy(
    services: ServicesDep,
    caller: Publisher,
    device_id: DeviceId,
    request: Annotated[PolicyChange, Body(examples=[{"group": "pilot", "tags": ["kitchen"]}])],
) -> DevicePolicyRecord:
    """Change what is named. A forced version goes past every rollout; a device that is opted out gets nothing else."""
    changes = request.model_dump(exclude_unset=True)
    with audited(services.registry, caller, "device.policy", f"{device_id}: {', '.join(sorted(changes))}"):
        return services.registry.set_device_policy(device_id, **changes)


@router.get(
    "/{device_id}/explanation",
    summary="Explain which version a device gets",
    responses={
        200: answer("The decision that an update check of this device would get now.", EXPLANATION),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def explain_device(services: ServicesDep, _: Viewer, device_id: DeviceId) -> DeviceExplanation:
    """Say why a device gets, or does not get, a version, as it was weighed, and by which packages."""
    registry = services.registry
    device = registry.device(device_id)
    decided = explain(registry, device_id, installed_version=device.installed_version, is_full=True)
    return DeviceExplanation(
        device=device,
        policy=registry.device_policy(device_id),
        explanation=decided,
        packages=told(registry, services.metadata, device, decided),
    )
