"""Operators and their API tokens, for admins."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from server.api.callers import audited, refuse_unless
from server.api.services import ServicesDep
from server.console.responses import ConsoleRoute, redirect, render
from server.console.visits import PostingVisit, VisitDep
from server.registry import Role

router = APIRouter(route_class=ConsoleRoute)


@router.get("/operators")
def operators(services: ServicesDep, visit: VisitDep) -> Response:
    """Accounts with their roles, and tokens without their secrets."""
    visit.caller.require(Role.ADMIN)
    return render(
        "operators.html",
        visit=visit,
        operators=services.registry.operators(),
        tokens=services.registry.operator_tokens(),
    )


@router.post("/operators/tokens/{token_id}/revoke")
def revoke_token(
    services: ServicesDep, visit: PostingVisit, token_id: Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
) -> Response:
    """Refuse an API token from now on."""
    refuse_unless(services.registry, visit.caller, Role.ADMIN, action="token.revoke")
    with audited(services.registry, visit.caller, "token.revoke", token_id):
        services.registry.revoke_operator_token(token_id)
    return redirect("/console/operators")
