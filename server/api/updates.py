"""Updates, as a device sees them: is there something newer, and how did it go?"""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from delta_updates import (
    PROTOCOL_HEADER,
    ChainStep,
    Offer,
    Outcome,
    OutcomeReport,
    PackageRef,
    UpdateQuery,
    protocol_of,
)
from server.api.examples import MODEL, OFFER, OFFER_ID, OTHER_HASH, answer
from server.api.problems import declare
from server.api.services import CallingDevice, Protocol, Services, ServicesDep
from server.api.unchanged import TIME_BOUND
from server.errors import ConflictError, ForbiddenError
from server.offers import cheapest_chain, choose_package, explain, has_nothing_to_do, known_hash
from server.registry import DeviceRecord, PackageRecord

router = APIRouter(prefix="/updates", tags=["device"])
_QUERY = {"model": MODEL, "installed_version": 2, "installed_hash": OTHER_HASH, "only_full": False}
_REPORT = {
    "offer_id": OFFER_ID,
    "version": 3,
    "outcome": "confirmed",
    "reason": "",
    "bytes_downloaded": 1_482_113,
    "apply_seconds": 0.9,
    "quality": {"loss_increase": -0.03, "tokens_per_second": 14.2, "memory_bytes": 402_653_184},
}
_REFUSALS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


@router.post(
    "/check",
    summary="Ask for an update",
    response_model=Offer,
    responses={
        200: answer("Go to this version with this package.", OFFER),
        204: {"description": "There is nothing to do. The ETag stands for this answer to this question."},
        304: {"description": "Still nothing to do (If-None-Match): the same question, and nothing has changed."},
        **declare(*_REFUSALS),
    },
)
def check(
    request: Request,
    services: ServicesDep,
    device: CallingDevice,
    query: Annotated[UpdateQuery, Body(examples=[_QUERY])],
    spoken: Protocol = None,
) -> Response:
    """Offer the version that a rollout gives this device, by the delta from what it has, or by the full package.

    A version that this device reverted is not offered to it again: the next release is. Full is offered when the device
    asks for it, when it has nothing, and when its hash is not that of the version it names. A version lower than what
    the device has is never offered, nor one that was withdrawn. Deltas over versions between (`chain`, from protocol 2
    on) are offered beside it where they are fewer bytes.
    """
    if query.model != device.model:
        raise ForbiddenError(f"This device is enrolled for {device.model!r}, not for {query.model!r}.")
    registry = services.registry
    registry.record_check(
        device.device_id,
        installed_version=query.installed_version,
        installed_hash=query.installed_hash,
        known=device,
    )
    protocol = protocol_of(spoken)
    headers = {PROTOCOL_HEADER: str(protocol)}
    decided = explain(registry, device.device_id, installed_version=query.installed_version)
    request.scope[TIME_BOUND] = decided.is_time_bound
    offer = None if decided.version is None else _offer(services, device, query, decided.version, decided.rollout_id)
    if offer is None:
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)
    return JSONResponse(offer.in_protocol(protocol), headers=headers)


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
    rollout_id = services.registry.record_outcome(device.device_id, report)
    if rollout_id is not None:
        services.registry.settle_rollout(rollout_id, is_urgent=report.outcome is not Outcome.CONFIRMED)
    services.metrics.count_outcome(report.outcome.value)


def _offer(
    services: Services, device: DeviceRecord, query: UpdateQuery, number: int, rollout_id: int | None
) -> Offer | None:
    """The offer of a version by its cheapest packages; None when the device has it, or it was stopped just now."""
    registry, version = services.registry, services.registry.version(query.model, number)
    if has_nothing_to_do(query, version):
        return None
    installed_hash = known_hash(registry, query, latest=version)
    package = choose_package(
        query, latest=version, installed_hash=installed_hash, packages=registry.packages(query.model, number)
    )
    if package is None:
        return None
    try:
        offered = registry.record_offer(
            device.device_id, model=query.model, version=number, package_path=package.path, rollout_id=rollout_id
        )
    except ConflictError:
        return None
    is_known = query.installed_hash is not None and query.installed_hash == installed_hash and not query.only_full
    return Offer(
        offer_id=offered.offer_id,
        model=version.model,
        version=number,
        tree_hash=version.manifest.tree_hash,
        manifest_path=version.manifest_path,
        package=_ref(package),
        chain=_chain(services, query, package) if is_known else (),
    )


def _chain(services: Services, query: UpdateQuery, package: PackageRecord) -> tuple[ChainStep, ...]:
    """Deltas that reach the same version with fewer bytes than `package`."""
    registry, source = services.registry, query.installed_version or 0
    deltas = registry.deltas(query.model)
    path = cheapest_chain(deltas, source=source, target=package.version)
    if not _is_cheaper(path, package):
        return ()
    # A device refuses a step whose manifest is not signed any more. Asked last: it reads and checks the metadata.
    signed = services.metadata.signed_versions(query.model)
    if not all(delta.version in signed for delta in path):
        left = [delta for delta in deltas if delta.version in signed]
        path = cheapest_chain(left, source=source, target=package.version)
        if not _is_cheaper(path, package):
            return ()
    versions = (registry.version(query.model, delta.version) for delta in path)
    return tuple(
        ChainStep(
            version=version.number,
            tree_hash=version.manifest.tree_hash,
            manifest_path=version.manifest_path,
            package=_ref(delta),
        )
        for delta, version in zip(path, versions, strict=True)
    )


def _is_cheaper(path: tuple[PackageRecord, ...], package: PackageRecord) -> bool:
    """Whether several deltas are fewer bytes than one package; one delta is no chain."""
    return len(path) > 1 and sum(delta.length for delta in path) < package.length


def _ref(package: PackageRecord) -> PackageRef:
    return PackageRef(
        path=package.path, length=package.length, sha256=package.sha256, source_version=package.source_version
    )
