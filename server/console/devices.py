"""Devices: find them, look into one, revoke it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response

from delta_updates.offer import Outcome
from server.api.callers import audited, refuse_unless
from server.api.services import ServicesDep
from server.console.responses import ConsoleRoute, redirect, render
from server.console.visits import PostingVisit, VisitDep
from server.offers import explain
from server.registry import OfferRecord, ReportRecord, Role
from server.way_told import told

router = APIRouter(route_class=ConsoleRoute)
_PAGE: Final = 50
_HISTORY: Final = 100
# What comes after what, where two things happened in the same moment.
_PROGRESS: Final = ["offered", *(outcome.value for outcome in Outcome)]


@dataclass(frozen=True)
class Event:
    """Something that happened to a device: an offer that it was made, or a report about one."""

    at: datetime
    what: str
    version: int
    offer: OfferRecord | None = None
    report: ReportRecord | None = None


DeviceId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]


@router.get("/devices")
def devices(
    services: ServicesDep,
    visit: VisitDep,
    q: Annotated[str, Query(max_length=64, pattern=r"^[^\x00]*$")] = "",
    after: Annotated[str, Query(pattern=r"^[0-9a-f]{0,32}$")] = "",
) -> Response:
    """A page of devices, all or those that were searched for."""
    found = services.registry.find_devices(q.strip(), after=after, limit=_PAGE + 1)
    shown = found[:_PAGE]
    return render(
        "devices.html",
        visit=visit,
        devices=shown,
        q=q,
        is_first=not after,
        next=shown[-1].device_id if len(found) > _PAGE else None,
    )


@router.get("/devices/{device_id}")
def device(services: ServicesDep, visit: VisitDep, device_id: DeviceId) -> Response:
    """One device with its history."""
    registry = services.registry
    record = registry.device(device_id)
    decided = explain(registry, device_id, installed_version=record.installed_version)
    return render(
        "device.html",
        visit=visit,
        device=record,
        latest=registry.latest_released(record.model),
        policy=registry.device_policy(device_id),
        explanation=decided,
        packages=told(registry, services.metadata, record, decided),
        controller=registry.controller_of(device_id),
        action=registry.latest_action(device_id),
        history=_history(registry.offers(device_id, limit=_HISTORY), registry.reports(device_id, limit=_HISTORY)),
    )


@router.post("/devices/{device_id}/revoke")
def revoke(services: ServicesDep, visit: PostingVisit, device_id: DeviceId) -> Response:
    """Refuse the device's credential from now on."""
    refuse_unless(services.registry, visit.caller, Role.PUBLISHER, action="device.revoke")
    with audited(services.registry, visit.caller, "device.revoke", device_id):
        services.registry.revoke_device(device_id)
    return redirect(f"/console/devices/{device_id}")


def _history(offers: tuple[OfferRecord, ...], reports: tuple[ReportRecord, ...]) -> list[Event]:
    """Offers and reports in one list, the newest first."""
    events = [Event(offer.offered_at, "offered", offer.version, offer=offer) for offer in offers]
    events += [Event(report.received_at, report.outcome, report.version, report=report) for report in reports]
    return sorted(events, key=lambda event: (event.at, _PROGRESS.index(event.what)), reverse=True)
