"""Is the process up, and can it do its work?"""

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from server.api.examples import answer
from server.api.problems import declare
from server.api.services import ServicesDep
from server.errors import SigningError

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The state of the service."""

    status: Literal["alive", "ready"]


@router.get("/healthz", summary="Is the process alive?", responses={200: answer("It is.", {"status": "alive"})})
def alive() -> Health:
    """Say that the process answers; asks nothing else."""
    return Health(status="alive")


@router.get(
    "/readyz",
    summary="Can the service do its work?",
    responses={200: answer("It can.", {"status": "ready"}), **declare()},
)
def ready(services: ServicesDep) -> Health:
    """Check that the database answers and that the signed metadata has not expired."""
    services.registry.ping()
    if (expiry := services.metadata.expires_at()) <= datetime.now(UTC):
        raise SigningError(f"The signed metadata expired at {expiry:%Y-%m-%d %H:%M} UTC. Restart the API to renew it.")
    return Health(status="ready")
