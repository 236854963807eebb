"""Log in and out."""

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from server.api.callers import Caller, audited
from server.api.services import Services, ServicesDep, address_of
from server.console.responses import ConsoleRoute, redirect, render
from server.console.visits import FormFields, PostingVisit, cookie_name, is_https, set_cookie
from server.errors import CredentialRefusedError, TooManyRequestsError
from server.registry import OperatorRecord, Role

router = APIRouter(route_class=ConsoleRoute)
_LOCAL = frozenset({"127.0.0.1", "::1", "localhost", "testclient"})


@router.get("/login")
def login_page(request: Request, services: ServicesDep, after: Annotated[str, Query(alias="next")] = "") -> Response:
    """Ask for name and password."""
    return _form(request, services, after=after)


@router.post("/login")
def log_in(request: Request, services: ServicesDep, fields: FormFields) -> Response:
    """Begin a session, or say that name and password do not belong together."""
    name, after = fields.get("name", "").strip()[:100], fields.get("next", "")
    try:
        operator = _operator(request, services, name=name, password=fields.get("password", ""))
    except TooManyRequestsError as error:
        page = _form(request, services, after=after, name=name, problem=str(error), status=HTTPStatus.TOO_MANY_REQUESTS)
        page.headers["retry-after"] = str(error.retry_after_s)
        return page
    except CredentialRefusedError as error:
        return _form(request, services, after=after, name=name, problem=str(error), status=HTTPStatus.UNAUTHORIZED)
    cookie = services.registry.start_session(operator.name, valid_for=timedelta(hours=services.settings.session_hours))
    answer = redirect(_own_page(after))
    set_cookie(answer, services, cookie)
    return answer


@router.post("/logout")
def log_out(services: ServicesDep, visit: PostingVisit) -> Response:
    """End the session here and on the server."""
    services.registry.end_session(visit.cookie)
    answer = redirect("/console/login")
    answer.delete_cookie(cookie_name(services), path="/", secure=is_https(services), httponly=True, samesite="strict")
    # What the browser kept of the pages goes with the session.
    answer.headers["clear-site-data"] = '"cache"'
    return answer


def _operator(request: Request, services: Services, *, name: str, password: str) -> OperatorRecord:
    """The operator who logs in; failed attempts of an address and for a name are counted.

    Raises:
        CredentialRefusedError: Name and password do not belong together.
        TooManyRequestsError: Too many attempts have failed.
    """
    throttles, address = services.throttles, address_of(request)
    throttles.logins_from.require(address, of="failed logins from here")
    throttles.logins_as.require(name, of="failed logins with this name")
    known = next((o for o in services.registry.operators() if o.name == name and o.removed_at is None), None)
    # A name that is none may be a password in the wrong field: it does not go into the log.
    caller = Caller(
        name=known.name if known else "(unknown name)", role=known.role if known else Role.VIEWER, via="console"
    )
    with audited(services.registry, caller, "console.login", f"from {address}"):
        operator = services.registry.operator_by_password(name, password)
    throttles.logins_from.give_back(address)
    throttles.logins_as.give_back(name)
    return operator


def _form(
    request: Request, services: Services, *, after: str, name: str = "", problem: str = "", status: int = HTTPStatus.OK
) -> Response:
    is_plain = not is_https(services) and (request.url.hostname or "") not in _LOCAL and request.url.scheme != "https"
    return render(
        "login.html",
        status=status,
        after=_own_page(after),
        name=name,
        problem=problem,
        is_plain=is_plain,
        has_operators=any(o.has_password for o in services.registry.operators()),
    )


def _own_page(path: str) -> str:
    """Where to go after the login: only a page of the console, whatever the address says."""
    is_own = path.startswith("/console/") and "\\" not in path and ".." not in path and path.isprintable()
    return path if is_own else "/console/"
