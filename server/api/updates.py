"""Updates, as a device sees them: is there something newer, and how did it go?"""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Response

from delta_updates import Offer, OutcomeReport, PackageRef, UpdateQuery
from server.api.examples import MODEL, OFFER, OFFER_ID, OTHER_HASH, answer
from server.api.problems import declare
from server.api.services import CallingDevice, ServicesDep
from server.errors import ForbiddenError, NotFoundError
from server.offers import choose_package
from server.registry import Registry

router = APIRouter(prefix="/updates", tags=["device"])
_QUERY = {"model": MODEL, "installed_version": 2, "installed_hash": OTHER_HASH, "only_full": False}
_REPORT = {
    "offer_id": OFFER_ID,
    "version": 3,
    "outcome": "confirmed",
    "reason": "",
    "bytes_downloaded": 1_482_113,
    "apply_seconds": 0.9,
}
_REFUSALS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


@router.post(
    "/check",
    summary="Ask for an update",
    response_model=Offer,
    responses={
        200: answer("Go to this version with this package.", OFFER),
        204: {"description": "There is nothing to do."},
        **declare(*_REFUSALS),
    },
)
def check(
    services: ServicesDep, device: CallingDevice, query: Annotated[UpdateQuery, Body(examples=[_QUERY])]
) -> Offer | Response:
    """Offer the latest release, by the delta from what the device has, or by the full package.

    Full is offered when the device asks for it, when it has nothing, and when its hash is not that of the version it
    names. A version lower than what the device has is never offered.
    """
    if query.model != device.model:
        raise ForbiddenError(f"This device is enrolled for {device.model!r}, not for {query.model!r}.")
    registry = services.registry
    registry.record_check(
        device.device_id, installed_version=query.installed_version, installed_hash=query.installed_hash
    )
    latest = registry.latest_released(query.model)
    if latest is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    package = choose_package(
        query,
        latest=latest,
        installed_hash=_known_hash(registry, query),
        packages=registry.packages(query.model, latest.number),
    )
    if package is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    offer = registry.record_offer(
        device.device_id, model=latest.model, version=latest.number, package_path=package.path
    )
    return Offer(
        offer_id=offer.offer_id,
        model=latest.model,
        version=latest.number,
        tree_hash=latest.manifest.tree_hash,
        manifest_path=latest.manifest_path,
        package=PackageRef(
            path=package.path, length=package.length, sha256=package.sha256, source_version=package.source_version
        ),
    )


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
    services.registry.record_outcome(device.device_id, report)


def _known_hash(registry: Registry, query: UpdateQuery) -> str | None:
    """The tree hash of the version that a device says it has; None when there is no such version."""
    if query.installed_version is None:
        return None
    try:
        return registry.version(query.model, query.installed_version).manifest.tree_hash
    except NotFoundError:
        return None
