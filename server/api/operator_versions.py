"""For the operator: models, their versions and packages."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from delta_updates.manifest import ModelName
from server.api.examples import MODEL, PACKAGE, VERSION, answer, page
from server.api.problems import declare
from server.api.services import Page, PageLimit, ServicesDep, Viewer, page_of
from server.registry import PackageRecord, VersionRecord

router = APIRouter(prefix="/models", tags=["operator: versions"])
_REFUSALS = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY)

ModelPath = Annotated[ModelName, Path(description="The model's name.", openapi_examples={"a model": {"value": MODEL}})]
NumberPath = Annotated[
    int, Path(ge=1, le=2**31 - 1, description="The version's number.", openapi_examples={"v3": {"value": 3}})
]


class Models(BaseModel):
    """The names of all models."""

    models: tuple[str, ...]


class VersionDetail(BaseModel):
    """A version and its packages, the full one first."""

    version: VersionRecord
    packages: tuple[PackageRecord, ...]


@router.get(
    "",
    summary="List models",
    responses={
        200: answer("The names of all models.", {"models": [MODEL]}),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN),
    },
)
def list_models(services: ServicesDep, _: Viewer) -> Models:
    """List the models that have at least one version."""
    return Models(models=services.registry.models())


@router.get(
    "/{model}/versions",
    summary="List the versions of a model",
    responses={
        200: answer("Versions with lineage, state and gate, oldest first.", page(VERSION, cursor="3")),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def list_versions(
    services: ServicesDep,
    _: Viewer,
    model: ModelPath,
    limit: PageLimit = 100,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="`next` of the page before.", examples=[0])] = 0,
) -> Page[VersionRecord]:
    """List candidates, releases and rejected versions; a model without versions has an empty list."""
    versions = services.registry.versions(model, after=after, limit=limit)
    return page_of(versions, limit=limit, cursor=str(versions[-1].number) if versions else None)


@router.get(
    "/{model}/versions/{number}",
    summary="Show a version and its packages",
    responses={
        200: answer("The version.", {"version": VERSION, "packages": [PACKAGE]}),
        **declare(*_REFUSALS),
    },
)
def show_version(services: ServicesDep, _: Viewer, model: ModelPath, number: NumberPath) -> VersionDetail:
    """Show a version's manifest, lineage, gate and packages."""
    return VersionDetail(
        version=services.registry.version(model, number), packages=services.registry.packages(model, number)
    )
