"""Who is looking at the console: session cookies, and proof that a form came from our own page."""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request, Response

from server.api.callers import Caller
from server.api.services import Services, ServicesDep
from server.console.responses import LoginNeededError
from server.errors import ForbiddenError, InvalidRecordError
from server.registry import Role

_MAX_FIELDS: Final = 20
_COOKIE_LENGTH: Final = 43


@dataclass(frozen=True, kw_only=True)
class Visit:
    """An operator with a session; ``csrf`` goes into every form and comes back with it."""

    caller: Caller
    cookie: str

    @property
    def csrf(self) -> str:
        """Nobody who does not have the cookie can make it, and it tells nothing about the cookie."""
        return hmac.digest(self.cookie.encode(), b"form", hashlib.sha256).hex()

    def may(self, role: str) -> bool:
        """Whether the operator's role includes another one."""
        return self.caller.role.includes(Role(role))


def visit(request: Request, services: ServicesDep) -> Visit:
    """The visit of who is logged in.

    Raises:
        LoginNeededError: Nobody is.
    """
    cookie = request.cookies.get(cookie_name(services), "")
    operator = services.registry.session_operator(cookie) if len(cookie) == _COOKIE_LENGTH else None
    if operator is None:
        raise LoginNeededError
    return Visit(caller=Caller(name=operator.name, role=operator.role, via="console"), cookie=cookie)


async def form_fields(request: Request) -> dict[str, str]:
    """The fields of a form that one of our own pages sent.

    Raises:
        ForbiddenError: Another site sent it.
        InvalidRecordError: It is no form.
    """
    require_own_page(request)
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise InvalidRecordError("This is no form. Open the page again, and send its form.")
    try:
        text = (await request.body()).decode("ascii")
        fields = dict(parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict"))
    except ValueError:
        raise InvalidRecordError("This form cannot be read. Open the page again.") from None
    # PostgreSQL takes no NUL, and no field of ours has use for one.
    return {name: value.replace("\0", "") for name, value in fields.items()}


def require_own_page(request: Request) -> None:
    """Refuse what a browser says that another site made it send.

    Raises:
        ForbiddenError: It was another site.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    is_foreign_origin = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if site not in {None, "same-origin", "none"} or is_foreign_origin:
        raise ForbiddenError("Another site sent this form. Open the console itself, and do it there.")


VisitDep = Annotated[Visit, Depends(visit)]
FormFields = Annotated[dict[str, str], Depends(form_fields)]


def posting_visit(current: VisitDep, fields: FormFields) -> Visit:
    """The visit of who sent a form, with the proof that the form was made for this session.

    Raises:
        ForbiddenError: The proof is missing or is of another session.
    """
    if not hmac.compare_digest(fields.get("csrf", "").encode(), current.csrf.encode()):
        raise ForbiddenError("This form is of an older session. Go back, load the page again, and send it again.")
    return current


PostingVisit = Annotated[Visit, Depends(posting_visit)]


def is_https(services: Services) -> bool:
    """Whether browsers reach this service over TLS."""
    return services.settings.public_url.startswith("https://")


def cookie_name(services: Services) -> str:
    """With its prefix, browsers take the cookie only from this very host, over TLS, for every path."""
    return "__Host-lamella" if is_https(services) else "lamella"


def set_cookie(response: Response, services: Services, cookie: str) -> None:
    """Let the browser keep a session until it is closed; no script can read it, no other site can use it."""
    response.set_cookie(
        cookie_name(services), cookie, path="/", secure=is_https(services), httponly=True, samesite="strict"
    )
