"""Is the process up, and can it do its work?"""

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from server.api.examples import answer
from server.api.problems import declare
from server.api.services import ServicesDep
from server.errors import SigningError

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The state of the service."""

    status: Literal["alive", "ready"]
    warnings: tuple[str, ...] = Field(
        default=(), description="What works, but will stop to work unless somebody does something; with what to do."
    )


@router.get(
    "/healthz", summary="Is the process alive?", responses={200: answer("It is.", {"status": "alive", "warnings": []})}
)
def alive() -> Health:
    """Say that the process answers; asks nothing else."""
    return Health(status="alive")


@router.get(
    "/readyz",
    summary="Can the service do its work?",
    responses={200: answer("It can.", {"status": "ready", "warnings": []}), **declare()},
)
def ready(services: ServicesDep) -> Health:
    """Check that database and artifact store answer and that signed metadata has not expired; warn of what will."""
    services.registry.ping()
    services.artifacts.ping()
    if (expiry := services.metadata.expires_at()) <= datetime.now(UTC):
        raise SigningError(
            f"The signed metadata expired at {expiry:%Y-%m-%d %H:%M} UTC. `lamella trust show` says what to renew."
        )
    return Health(status="ready", warnings=services.metadata.warnings(services.settings.trust_warning_days))
