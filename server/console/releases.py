"""Versions of a model, how they descend from each other, and each one's facts."""

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response

from delta_updates.manifest import ModelName
from delta_updates.offer import Outcome
from server.api.callers import audited, refuse_unless
from server.api.services import Services, ServicesDep
from server.console.lineage import lineage
from server.console.responses import ConsoleRoute, redirect, render
from server.console.statement import privacy_spent, privacy_statements
from server.console.visits import FormFields, PostingVisit, VisitDep
from server.errors import InvalidRecordError, NotFoundError
from server.registry import Role, VersionRecord
from server.signed_statement import signed_statement

router = APIRouter(route_class=ConsoleRoute)
_MAX_REASON: Final = 500
_NEWEST: Final = 200
_PROGRESS: Final = [outcome.value for outcome in Outcome]


@router.get("/releases")
def releases(services: ServicesDep, visit: VisitDep, model: Annotated[ModelName | None, Query()] = None) -> Response:
    """All versions of a model and their lineage."""
    registry = services.registry
    models = registry.models()
    if model is not None and model not in models:
        raise NotFoundError(f"There is no model {model!r}.")
    chosen = model or (models[0] if models else "")
    versions = registry.versions(chosen) if chosen else ()
    spent = {version.number: privacy_spent(registry, version) for version in versions}
    return render(
        "releases.html",
        visit=visit,
        models=models,
        model=chosen,
        versions=versions[::-1],
        spent=spent,
        lineage=lineage(versions) if versions else None,
    )


@router.get("/releases/{model}/{number}")
def release(
    services: ServicesDep, visit: VisitDep, model: ModelName, number: Annotated[int, Path(ge=1, le=2**31 - 1)]
) -> Response:
    """One version: lineage, gate, privacy, packages, and how devices took it."""
    registry = services.registry
    version = registry.version(model, number)
    return render(
        "release.html",
        visit=visit,
        version=version,
        ancestors=_ancestors(services, version),
        children=[v for v in registry.versions(model, after=number) if v.manifest.parent == number],
        statements=privacy_statements(registry, version),
        signed=signed_statement(registry, services.artifacts, services.metadata, model, number),
        findings=registry.audit_findings(version.run_id) if version.run_id else (),
        packages=registry.packages(model, number),
        rollouts=[found for found in registry.rollouts(model=model, limit=_NEWEST) if found.version == number],
        outcomes=sorted(registry.outcomes(model, number).items(), key=lambda pair: _PROGRESS.index(pair[0])),
        length=sum(file.length for file in version.manifest.files),
    )


@router.post("/releases/{model}/{number}/withdraw")
def withdraw(
    services: ServicesDep,
    visit: PostingVisit,
    fields: FormFields,
    model: ModelName,
    number: Annotated[int, Path(ge=1, le=2**31 - 1)],
) -> Response:
    """Offer the version no more."""
    refuse_unless(services.registry, visit.caller, Role.PUBLISHER, action="version.withdraw")
    reason = fields.get("reason", "").strip()[:_MAX_REASON]
    if not reason:
        raise InvalidRecordError("Say why it is withdrawn: devices' owners and operators read it.")
    with audited(services.registry, visit.caller, "version.withdraw", f"{model} v{number}"):
        services.registry.withdraw(model, number, reason=reason)
    return redirect(f"/console/releases/{model}/{number}")


def _ancestors(services: Services, version: VersionRecord) -> list[VersionRecord]:
    """Parent, grandparent and so on, down to the base."""
    by_number = {v.number: v for v in services.registry.versions(version.model)}
    found: list[VersionRecord] = []
    parent = version.manifest.parent
    while parent is not None and parent in by_number:
        found.append(by_number[parent])
        parent = by_number[parent].manifest.parent
    return found
