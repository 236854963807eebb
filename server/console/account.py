"""One operator's account: its tokens, a new password, and its end; for admins."""

from datetime import timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request, Response

from server.api.callers import audited, refuse_unless
from server.api.services import Services, ServicesDep
from server.console.confirmation import require_own_password
from server.console.fields import whole_number
from server.console.operators import typed_twice
from server.console.responses import ConsoleRoute, redirect, render
from server.console.visits import FormFields, PostingVisit, VisitDep
from server.errors import ConflictError, NotFoundError
from server.passwords import MIN_PASSWORD
from server.registry import OperatorRecord, Role

router = APIRouter(route_class=ConsoleRoute)
_MAX_DAYS: Final = 3650

Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._@-]{0,63}$")]


@router.get("/operators/{name}")
def account(services: ServicesDep, visit: VisitDep, name: Name) -> Response:
    """One account with its tokens."""
    visit.caller.require(Role.ADMIN)
    return render(
        "account.html",
        visit=visit,
        operator=_operator(services, name),
        tokens=[token for token in services.registry.operator_tokens() if token.operator == name],
        max_days=_MAX_DAYS,
        min_password=MIN_PASSWORD,
    )


@router.post("/operators/{name}/tokens")
def create_token(
    request: Request, services: ServicesDep, visit: PostingVisit, fields: FormFields, name: Name
) -> Response:
    """Make an API token and show it; it is kept nowhere, so this page is the only place where it ever stands."""
    refuse_unless(services.registry, visit.caller, Role.ADMIN, action="token.create")
    label = fields.get("label", "").strip()
    days = whole_number(
        fields.get("days", ""), least=1, most=_MAX_DAYS, problem=f"A token works for 1 to {_MAX_DAYS} days."
    )
    with audited(services.registry, visit.caller, "token.create", f"{name}: {label}"):
        require_own_password(request, services, visit, password=fields.get("own_password", ""))
        token, record = services.registry.create_operator_token(name, label=label, valid_for=timedelta(days=days))
    return render("token.html", visit=visit, token=token, record=record)


@router.post("/operators/{name}/password")
def set_password(
    request: Request, services: ServicesDep, visit: PostingVisit, fields: FormFields, name: Name
) -> Response:
    """Give an operator a new password; whoever is logged in with the old one is logged out."""
    refuse_unless(services.registry, visit.caller, Role.ADMIN, action="operator.passwd")
    password = typed_twice(fields)
    with audited(services.registry, visit.caller, "operator.passwd", name):
        require_own_password(request, services, visit, password=fields.get("own_password", ""))
        services.registry.set_password(name, password)
    return redirect(f"/console/operators/{name}")


@router.post("/operators/{name}/remove")
def remove(services: ServicesDep, visit: PostingVisit, name: Name) -> Response:
    """Close an account: its sessions end, its tokens are revoked."""
    refuse_unless(services.registry, visit.caller, Role.ADMIN, action="operator.remove")
    with audited(services.registry, visit.caller, "operator.remove", name):
        if name == visit.caller.name:
            raise ConflictError(
                "Nobody closes their own account here. Another admin does it, or at the server's "
                f"terminal: lamella operators remove {name}"
            )
        services.registry.remove_operator(name)
    return redirect(f"/console/operators/{name}")


def _operator(services: Services, name: str) -> OperatorRecord:
    found = next((operator for operator in services.registry.operators() if operator.name == name), None)
    if found is None:
        raise NotFoundError(f"There is no operator {name!r}.")
    return found
