"""Answers of a server that nobody trusts: read within bounds, and sorted by who can act."""

import json
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import urllib3

from client_sdk.errors import EnrolmentError, ServiceRefusedError, ServiceUnavailableError
from client_sdk.pace import Clock, Limits

CHUNK_BYTES = 1 << 16
STRONG_ETAG = re.compile(r'"[!#-~]{1,254}"')
"""What may be kept and shown again. Weak ones promise no equal bytes (RFC 9110, 8.8.1)."""
_MOST_PATIENCE_S = 24 * 3600.0
_MAX_DETAIL_BYTES = 1 << 14
_RETRYABLE = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS} | set(range(500, 600))
)


def read_bounded(response: urllib3.BaseHTTPResponse, max_bytes: int, clock: Clock, limits: Limits) -> bytes:
    """Read a small body within its size and time limits.

    Raises:
        ServiceRefusedError: more than `max_bytes`.
        ServiceUnavailableError: slower than the request deadline allows.
    """
    deadline = clock.monotonic() + limits.request_deadline_s
    body = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise ServiceRefusedError(
                f"The server's answer is larger than the {max_bytes} bytes allowed here.", status=response.status
            )
        # A server that drips bytes resets every socket timeout; only a deadline ends it.
        if clock.monotonic() > deadline:
            raise ServiceUnavailableError(f"The server's answer took longer than {limits.request_deadline_s:.0f} s.")
    return bytes(body)


def raise_for_status(response: urllib3.BaseHTTPResponse, server_url: str, clock: Clock, limits: Limits) -> None:
    """Sort an answer that is not 2xx by who can act; does nothing for 2xx.

    Raises:
        ServiceUnavailableError, EnrolmentError, ServiceRefusedError: see `Transport.call`.
    """
    status = response.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return
    if status in _RETRYABLE:
        raise ServiceUnavailableError(
            f"{server_url} answers {status}; trying again later helps.", retry_after_s=_retry_after_s(response)
        )
    detail = _detail(response, clock, limits)
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise EnrolmentError(f"{server_url} does not accept this device ({status}{detail}). Enrol it again.")
    raise ServiceRefusedError(f"{server_url} refused the request ({status}{detail}).", status=status)


def require_no_portal(response: urllib3.BaseHTTPResponse, server_url: str) -> None:
    """Refuse a web page where the service answers with none: a network's log-in page, with status 200.

    Raises:
        ServiceUnavailableError: it is one. Somebody has to log in, or the network has to change.
    """
    if response.headers.get("Content-Type", "").split(";")[0].strip().lower() == "text/html":
        raise ServiceUnavailableError(
            f"A web page came instead of an answer of {server_url}: the network may want a log-in (a captive portal). "
            "Open a page in a browser, or try another network."
        )


def printable(text: str, *, max_chars: int = 300) -> str:
    """Foreign text made safe to print: one line, no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in text[:max_chars]).strip()


def _detail(response: urllib3.BaseHTTPResponse, clock: Clock, limits: Limits) -> str:
    try:
        body = read_bounded(response, _MAX_DETAIL_BYTES, clock, limits)
    except (ServiceRefusedError, ServiceUnavailableError):
        return ""
    text = body.decode("utf-8", "replace")
    try:
        parsed = json.loads(text)
        text = str(parsed.get("detail", "")) if isinstance(parsed, dict) else text
    except ValueError:
        pass  # not every proxy speaks application/problem+json
    return f": {printable(text)}" if text else ""


def _retry_after_s(response: urllib3.BaseHTTPResponse) -> float | None:
    """The wait that was asked for, in seconds or as a date (RFC 9110, 10.2.3), at most a day; None for nonsense."""
    value = response.headers.get("Retry-After", "")[:40]
    if value.isascii() and value.isdigit():
        return min(float(value), _MOST_PATIENCE_S)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)
    return min(max(0.0, wait.total_seconds()), _MOST_PATIENCE_S)
