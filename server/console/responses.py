"""From values to pages: templates, headers, and what a person sees when something went wrong."""

import hashlib
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from server.api.problems import status_of
from server.console.navigation import PAGES
from server.errors import ServerError, TooManyRequestsError

_log = logging.getLogger("lamella.console")
_FOLDER: Final = Path(__file__).parent
STATIC: Final = {
    name: (media_type, (_FOLDER / "static" / name).read_bytes())
    for name, media_type in (("console.css", "text/css"), ("icon.svg", "image/svg+xml"))
}
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    # Forms shall say where they come from, to this service alone.
    "referrer-policy": "same-origin",
}
_UNAVAILABLE: Final = "The service cannot answer just now. Try again later; the operator's log says why."
_MEGA, _KILO = 1_000_000, 1_000


class LoginNeededError(Exception):
    """Nobody is logged in, or not any more."""


def render(template: str, *, status: int = HTTPStatus.OK, **values: object) -> HTMLResponse:
    """A page."""
    html = _templates.get_template(template).render(**values)
    return HTMLResponse(html, status, _HEADERS)


def redirect(path: str) -> RedirectResponse:
    """Go on with another page, by GET."""
    return RedirectResponse(path, HTTPStatus.SEE_OTHER)


class ConsoleRoute(APIRoute):
    """A page whose errors are pages too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler, with the console's answers to errors."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except LoginNeededError:
                after = f"?next={quote(request.url.path)}" if request.method == "GET" else ""
                return redirect(f"/console/login{after}")
            except RequestValidationError as error:
                fault = error.errors()[0]
                place = str(fault["loc"][-1])
                return _error_page(HTTPStatus.UNPROCESSABLE_ENTITY, f"{place}: {fault['msg']}.")
            except ServerError as error:
                return answer_to(error)

        return answer


def answer_to(error: ServerError) -> HTMLResponse:
    """The page that tells of an error; what only concerns the server's machine is logged, not shown."""
    status = status_of(error)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        _log.error("%s: %s", type(error).__name__, error)
        return _error_page(status, _UNAVAILABLE)
    page = _error_page(status, str(error))
    if isinstance(error, TooManyRequestsError):
        page.headers["retry-after"] = str(error.retry_after_s)
    return page


def _error_page(status: HTTPStatus, detail: str) -> HTMLResponse:
    return render("error.html", status=status, title=status.phrase, detail=detail)


def _moment(time: datetime | None) -> str:
    return "never" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def _ago(time: datetime | None) -> str:
    if time is None:
        return "never"
    seconds = (datetime.now(UTC) - time).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if abs(seconds) >= length:
            return f"{abs(seconds) / length:.0f} {unit} ago" if seconds > 0 else f"in {-seconds / length:.0f} {unit}"
    return "just now"


def _size(length: float) -> str:
    if length >= _MEGA:
        return f"{length / _MEGA:,.2f} MB"
    return f"{length / _KILO:,.1f} kB" if length >= _KILO else f"{length:.0f} bytes"


def _short(digest: str) -> str:
    return digest[:12]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(moment=_moment, ago=_ago, size=_size, short=_short)
    environment.globals.update(
        pages=PAGES,
        # A changed file has another address, so that browsers may keep it.
        static_version=hashlib.sha256(b"".join(content for _, content in STATIC.values())).hexdigest()[:12],
    )
    return environment


_templates: Final = _environment()
