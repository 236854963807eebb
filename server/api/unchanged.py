"""Nothing new, without asking the database: a device that repeats its question is answered 304 while nothing changed.

The ETag of "nothing new" is a MAC of the question (caller, body, protocol) under the registry's change token, which
every process looks up once a second. It can be checked without knowing the device, and only holds while no write could
have changed the answer: whoever shows it asked the same before, was known, and was told "nothing".
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders

from delta_updates import PROTOCOL_HEADER, protocol_of
from delta_updates.request_signature import INPUT_HEADER, SignatureInput
from server.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from server.registry import Registry

CHECK_PATH: Final = "/v1/updates/check"
ANSWERED: Final = "lamella.answered"
TIME_BOUND: Final = "lamella.time_bound"
"""Set in a request's scope, it says that time alone will change the answer: it gets no ETag."""

_LOOK_EVERY_S: Final = 1.0
# Without news of the database for so long, nobody can say that nothing changed.
_BELIEVED_S: Final = 5.0
# 16 bytes in hexadecimal, a point, 32 bytes in base64.
_CREDENTIAL_CHARS: Final = 32 + 1 + 43
_log = logging.getLogger("lamella.api")


@dataclass
class LatestChange:
    """The registry's change token as last seen, and when that was."""

    registry: Registry
    _seen: tuple[str, float] | None = field(default=None)

    def look(self) -> None:
        """Ask the registry.

        Raises:
            ServerError: It does not answer.
        """
        asked_at = time.monotonic()
        self._seen = (self.registry.change_token(), asked_at)

    def token(self) -> str | None:
        """The token, if it is fresh enough to be believed."""
        if self._seen is None or time.monotonic() - self._seen[1] > _BELIEVED_S:
            return None
        return self._seen[0]

    async def keep_looking(self) -> None:
        """Look once a second, for as long as the service runs."""
        while True:
            try:
                await to_thread.run_sync(self.look)
            except ServerError as error:
                _log.warning("every check asks the database until it answers again: %s", error)
            await asyncio.sleep(_LOOK_EVERY_S)


class Unchanged:
    """Answers a repeated update check, and marks answers so that they can be repeated."""

    def __init__(
        self, app: ASGIApp, *, latest: LatestChange, memory_hours: float, note_seen: Callable[[str], None]
    ) -> None:
        self._app = app
        self._latest = latest
        self._note_seen = note_seen
        self._period_s = memory_hours * 3600
        self._release = version("lamella").encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 304, or pass the request on."""
        is_check = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == CHECK_PATH
        # Taken before the database is asked: what changes meanwhile makes this token the old one.
        token = self._latest.token() if is_check and self._period_s else None
        if token is None:
            return await self._app(scope, receive, send)
        headers, message = Headers(scope=scope), await receive()
        etag = self._etag(token, headers, message.get("body", b""))
        if headers.get("if-none-match") == etag:
            scope[ANSWERED] = CHECK_PATH
            self._note_seen(_caller(headers)[1])
            protocol = str(protocol_of(headers.get(PROTOCOL_HEADER)))
            await send(
                {
                    "type": "http.response.start",
                    "status": HTTPStatus.NOT_MODIFIED,
                    "headers": [(b"etag", etag.encode()), (PROTOCOL_HEADER.lower().encode(), protocol.encode())],
                }
            )
            return await send({"type": "http.response.body", "body": b""})
        unread: list[Message] = [message]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        async def send_marked(answer: Message) -> None:
            is_nothing = answer["type"] == "http.response.start" and answer["status"] == HTTPStatus.NO_CONTENT
            if is_nothing and not scope.get(TIME_BOUND):
                MutableHeaders(scope=answer)["etag"] = etag
            await send(answer)

        return await self._app(scope, receive_again, send_marked)

    def _etag(self, token: str, headers: Headers, body: bytes) -> str:
        credential, _ = _caller(headers)
        # Each device at another time: they do not all come back to the database at once.
        shift = int.from_bytes(hashlib.sha256(credential).digest()[:4], "big") / 2**32
        period = str(int(time.time() / self._period_s + shift)).encode()
        question = (self._release, period, credential, headers.get(PROTOCOL_HEADER, "").encode(), body)
        mac = hmac.new(token.encode(), digestmod="sha256")
        for part in question:
            mac.update(len(part).to_bytes(8, "big") + part)
        return f'"{mac.hexdigest()[:40]}"'


def _caller(headers: Headers) -> tuple[bytes, str]:
    """Who asks, by a credential or the device that a signature names; and the device's id.

    The signature itself is not looked at. Nobody but the device was told the ETag, and without it nobody gets here.
    """
    claimed = SignatureInput.parse(headers.get(INPUT_HEADER, ""))
    if claimed:
        return claimed.key_id.encode(), claimed.key_id
    shown = headers.get("authorization", "")
    return shown.encode(), shown[-_CREDENTIAL_CHARS:].partition(".")[0]
