"""Operators: who there is, a new account, and every API token; for admins."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from server.api.callers import audited, refuse_unless
from server.api.services import ServicesDep
from server.console.confirmation import require_own_password
from server.console.responses import ConsoleRoute, redirect, render
from server.console.visits import FormFields, PostingVisit, VisitDep
from server.errors import InvalidRecordError
from server.passwords import MIN_PASSWORD
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
        roles=tuple(Role),
        min_password=MIN_PASSWORD,
    )


@router.post("/operators")
def add(request: Request, services: ServicesDep, visit: PostingVisit, fields: FormFields) -> Response:
    """Make an account: with a password for the console, or for a program, which gets tokens only."""
    refuse_unless(services.registry, visit.caller, Role.ADMIN, action="operator.add")
    name, role = fields.get("name", "").strip(), _role(fields.get("role", ""))
    password = _wanted_password(fields)
    with audited(services.registry, visit.caller, "operator.add", f"{name} ({role})"):
        require_own_password(request, services, visit, password=fields.get("own_password", ""))
        services.registry.add_operator(name, role=role, password=password)
    return redirect(f"/console/operators/{name}")


@router.post("/operators/tokens/{token_id}/revoke")
def revoke_token(
    services: ServicesDep, visit: PostingVisit, token_id: Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
) -> Response:
    """Refuse an API token from now on."""
    refuse_unless(services.registry, visit.caller, Role.ADMIN, action="token.revoke")
    with audited(services.registry, visit.caller, "token.revoke", token_id):
        services.registry.revoke_operator_token(token_id)
    return redirect("/console/operators")


def typed_twice(fields: dict[str, str]) -> str:
    """The new password of a form that asks for it twice.

    Raises:
        InvalidRecordError: The two are not the same.
    """
    password = fields.get("password", "")
    if password != fields.get("password_again", ""):
        raise InvalidRecordError("The two new passwords are not the same. Go back, and type them again.")
    return password


def _wanted_password(fields: dict[str, str]) -> str | None:
    password = typed_twice(fields)
    if "is_program" not in fields:
        return password
    if password:
        raise InvalidRecordError("A program's account has no password. Leave it empty, or take the mark away.")
    return None


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise InvalidRecordError(f"Choose a role: {', '.join(Role)}.") from None
