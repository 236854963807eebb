"""What every request passes through: a bound on its body, security headers, and an answer to the unforeseen."""

import logging
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.problems import problem

MAX_BODY_BYTES: Final = 64 * 1024
_log = logging.getLogger("lamella.api")


class BodyLimit:
    """Reads a request's body, at most `MAX_BODY_BYTES`, before anything looks at it; nothing here sends more."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its body in memory, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        # The declared length only saves reading; what counts is what arrives.
        body = b"" if not declared.isdecimal() or int(declared[:18]) <= MAX_BODY_BYTES else None
        while body is not None:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                body = None
            elif not message.get("more_body", False):
                return await self._app(scope, _Replay(body, receive), send)
        refusal = problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The body is longer than {MAX_BODY_BYTES} bytes, which is more than any request here needs.",
            {"connection": "close"},
        )
        return await refusal(scope, receive, send)


class _Replay:
    """A body that was read already, then whatever else the connection says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._message = self._message, None
        return message or await self._receive()


class Guard:
    """Adds security headers to every answer, and answers an unforeseen error without showing its inside."""

    def __init__(self, app: ASGIApp, *, is_https: bool) -> None:
        self._app = app
        headers = {
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'",
            "cross-origin-resource-policy": "same-origin",
            "cache-control": "no-store",
        }
        if is_https:
            headers["strict-transport-security"] = "max-age=31536000"
        self._headers = tuple((name.encode(), value.encode()) for name, value in headers.items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and dress the answer."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        is_started = False

        async def send_dressed(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in self._headers if name not in given),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_dressed)
        except Exception:
            _log.exception("unforeseen error in %s %s", scope["method"], scope["path"])
            if is_started:
                # Half an answer is out: only cutting the connection tells the caller.
                raise
            detail = "The service made a mistake. The operator's log has the details."
            await problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail)(scope, receive, send_dressed)
