"""The API as one FastAPI app; ``uvicorn --factory server.api:create_app`` serves it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Final

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI

from server import console
from server.api import (
    ddi,
    documentation,
    enrolment,
    health,
    metrics,
    operator_accounts,
    operator_audit,
    operator_channels,
    operator_ddi,
    operator_devices,
    operator_policies,
    operator_rollouts,
    operator_runs,
    operator_statements,
    operator_versions,
    problems,
    targets,
    updates,
)
from server.api.arrivals import Arrivals
from server.api.callers import TokenVerifier
from server.api.middleware import BodyLimit, Guard
from server.api.observation import Observation
from server.api.seen import SeenDevices
from server.api.services import NeedsRole, Services, Throttles
from server.api.tracing import trace
from server.api.unchanged import LatestChange, Unchanged
from server.artifacts import open_artifacts
from server.config import Settings, load_settings
from server.ddi import load_signer
from server.errors import ServerError
from server.files import operator_token
from server.registry import Registry, Role
from server.signing import SignedMetadata

_log = logging.getLogger("lamella.api")
_MAX_REFRESH_S: Final = 3600.0
_ABOUT: Final = """\
Devices ask for updates, download signed packages and report how it went; operators watch.

Devices sign their requests (RFC 9421, `docs/security.md`), or send the `Authorization: Bearer <credential>` that
they got when they enrolled, until they have a key. Operators send an API token
(`lamella operators token create`) or the text in `operator.token` in the server's home. Errors are problem documents
(RFC 9457) whose `detail` says what to do next.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Open everything in the server's home, making what is missing, and put the API together.

    Args:
        settings: How to run; None reads the environment.

    Raises:
        ServerError: A setting, the database, the keys or the disk is not as it must be; nothing listens yet.
    """
    settings = settings or load_settings()
    load_signer(settings)  # a key that cannot be used is told now, not to the first device that asks
    services = open_services(settings)
    app = FastAPI(
        title="Lamella update service",
        version=version("lamella"),
        description=_ABOUT,
        openapi_url="/v1/openapi.json",
        # Their pages load scripts from a CDN; `documentation` serves one that loads nothing.
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.services = services
    problems.install(app)
    app.state.latest_change = LatestChange(services.registry)
    app.add_middleware(
        Unchanged,
        latest=app.state.latest_change,
        memory_hours=settings.check_memory_hours,
        note_seen=services.seen.note,
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(Guard, is_https=settings.public_url.startswith("https://"))
    for router in _routers():
        app.include_router(router, prefix="/v1")
    app.include_router(documentation.router)
    app.include_router(metrics.router)
    app.include_router(console.router)
    app.include_router(ddi.router)
    # Last added is outermost: it sees every answer.
    app.add_middleware(Observation, metrics=services.metrics)
    if settings.traces:
        trace(app, services)
    return app


def open_services(settings: Settings) -> Services:
    """Open registry, artifact store, signed metadata and operator token.

    Raises:
        ServerError: One of them cannot be used.
    """
    token = operator_token(settings.home)
    artifacts = open_artifacts(settings)
    metadata = SignedMetadata.open(settings)
    registry = Registry.open(settings)
    return Services(
        settings=settings,
        registry=registry,
        artifacts=artifacts,
        metadata=metadata,
        operator_token=token,
        tokens=TokenVerifier(registry, bootstrap=token),
        throttles=Throttles(settings),
        seen=SeenDevices(registry),
        arrivals=Arrivals(registry),
    )


def _routers() -> Iterator[APIRouter]:
    # What devices ask most comes first: routers are tried one after another.
    for module in (updates, targets, enrolment, health):
        yield module.router
    operator = APIRouter(prefix="/operator", dependencies=[Depends(NeedsRole(Role.VIEWER))])
    for module in (
        operator_devices,
        operator_policies,
        operator_ddi,
        operator_versions,
        operator_statements,
        operator_channels,
        operator_rollouts,
        operator_runs,
        operator_accounts,
        operator_audit,
    ):
        operator.include_router(module.router)
    yield operator


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    latest: LatestChange = app.state.latest_change
    keepers = [
        asyncio.create_task(keeping)
        for keeping in (_keep_fresh(services), latest.keep_looking(), services.seen.keep_writing())
    ]
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper
        with suppress(ServerError):
            await to_thread.run_sync(services.seen.write)
        services.registry.close()


async def _keep_fresh(services: Services) -> None:
    """Renew signed metadata long before it expires, for as long as the app runs."""
    # What has used up half of its lifetime is renewed, so an eighth leaves three more tries.
    pause_s = min(_MAX_REFRESH_S, services.settings.timestamp_expiry_hours * 3600 / 8)
    while True:
        try:
            await to_thread.run_sync(_warn_of_expiry, services)
            await asyncio.sleep(pause_s)
            await to_thread.run_sync(services.metadata.refresh)
        except ServerError:
            _log.exception("signed metadata could not be renewed; trying again in %.0f s", pause_s)


def _warn_of_expiry(services: Services) -> None:
    for warning in services.metadata.warnings(services.settings.trust_warning_days):
        _log.warning(warning)
