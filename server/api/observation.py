"""What an operator sees of the running service: a log line and numbers for each request, under one request id."""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.routing import Route

from server.api.unchanged import ANSWERED

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from server.api.metrics import Metrics

REQUEST_ID: Final = "x-request-id"
request_id: ContextVar[str] = ContextVar("request_id", default="")

# What a proxy in front may have given it; nothing that could forge a log line.
_GIVEN: Final = re.compile(r"[A-Za-z0-9._-]{8,64}")
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_SLASH: Final = re.compile("/")
_log = logging.getLogger("lamella.access")


def route_of(scope: Scope) -> str:
    """The template of the path that answered, prefixes of routers included; ``none`` where nothing did."""
    if answered := scope.get(ANSWERED):
        return str(answered)
    route = scope.get("route")
    if not isinstance(route, Route):
        return "none"
    path = str(scope["path"])
    # A route knows only what comes after the prefixes of the routers that it was included in.
    for place in (match.start() for match in _SLASH.finditer(path)):
        if route.path_regex.match(path[place:]):
            return path[:place] + route.path
    return route.path


class Observation:
    """Gives every request an id, measures it, and tells how it ended.

    Told is the route (`/v1/targets/{path}`), never the path or a header: those may name devices and hold secrets.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch the answer."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        own = given if _GIVEN.fullmatch(given) else secrets.token_hex(8)
        status, sent_bytes, started = 500, 0, time.perf_counter()

        async def send_observed(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID.encode(), own.encode())]
            else:
                sent_bytes += len(message.get("body", b""))
            await send(message)

        token = request_id.set(own)
        try:
            await self._app(scope, receive, send_observed)
        finally:
            seconds = time.perf_counter() - started
            route = route_of(scope)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.observe(method=method, route=route, status=status, seconds=seconds, sent_bytes=sent_bytes)
            if _log.isEnabledFor(logging.INFO):
                facts = {
                    "method": method,
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 2),
                    "bytes": sent_bytes,
                }
                _log.info("%s %s %d", method, route, status, extra={"facts": facts})
            request_id.reset(token)
