"""HTTP to one enrolled server: bounded in size and time, no redirects, and the credential goes nowhere else."""

import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, SSLError

from client_sdk.connections import bounded_pool, must_progress
from client_sdk.errors import EnrolmentError, ServiceRefusedError, ServiceUnavailableError
from client_sdk.identity import Identity
from client_sdk.pace import Backoff, Clock, Limits, SystemClock
from client_sdk.responses import raise_for_status, read_bounded, require_no_portal
from delta_updates.offer import PROTOCOL, PROTOCOL_HEADER, protocol_of

_IF_NONE_MATCH = "If-None-Match"
_DOWNLOADS = frozenset({HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE})


class Answer(NamedTuple):
    """A small answer, read as a whole, and the protocol that the service says it speaks."""

    status: int
    body: bytes
    protocol: int
    etag: str | None = None


class Transport:
    """Requests to the enrolled server, and to nothing else."""

    def __init__(
        self,
        server_url: str,
        *,
        identity: Identity | None = None,
        allow_http: bool = False,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.server_url = checked_server_url(server_url, allow_http=allow_http)
        self._origin_chars = len(self.server_url) - len(urlsplit(self.server_url).path)
        self.limits = limits or Limits()
        self.clock = clock or SystemClock()
        self.identity = identity
        """What shows requests to be this device's; None before it is enrolled."""
        self._pool = bounded_pool(
            urllib3.Timeout(connect=self.limits.connect_timeout_s, read=self.limits.read_timeout_s),
            header_deadline_s=self.limits.request_deadline_s,
        )

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        follow: bool = False,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """One request; yields the open response whatever its status, except a redirect.

        Args:
            method: GET, POST or PUT.
            path: below the server's address.
            headers: besides those that every request has.
            body: JSON.
            follow: go after one temporary redirect, without showing who this is; only for bytes that are verified by a
                signed hash, wherever they come from.

        Raises:
            ServiceUnavailableError: no connection, or it broke.
            ServiceRefusedError: the server answered with a redirect that is not followed.
        """
        sent = {
            "Accept-Encoding": "identity",
            "User-Agent": "lamella-device",
            PROTOCOL_HEADER: str(PROTOCOL),
            **(headers or {}),
        }
        if body is not None:
            sent["Content-Type"] = "application/json"
        response: urllib3.BaseHTTPResponse | None = None
        try:
            response = self._send(method, path, sent, body)
            if response.status == HTTPStatus.UNAUTHORIZED and self._learns_time(response):
                response.close()
                response = self._send(method, path, sent, body)
            if follow and response.status == HTTPStatus.TEMPORARY_REDIRECT:
                where = self._require_safe(response.headers.get("Location", ""))
                response.close()
                # Without what shows who this device is: whoever wrote the address must not get it.
                response = self._pool.request(
                    method, where, headers=sent, redirect=False, preload_content=False, decode_content=False
                )
                if response.status not in _DOWNLOADS:
                    # A link that expired says nothing about this device: the server makes a new one.
                    raise ServiceUnavailableError(
                        f"The place that {self.server_url} sends to answers {response.status}."
                    )
            is_unchanged = response.status == HTTPStatus.NOT_MODIFIED and _IF_NONE_MATCH in sent
            if 300 <= response.status < 400 and not is_unchanged:  # noqa: PLR2004 - the class of redirects
                # Following it would hand the credential, or the choice of the server, to whoever wrote the header.
                raise ServiceRefusedError(
                    f"{self.server_url} answered with a redirect ({response.status}); redirects are refused. Enrol "
                    "with the server's final address.",
                    status=response.status,
                )
            yield response
        except (HTTPError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError)):
                raise  # the caller's disk, not the network
            raise ServiceUnavailableError(self._no_answer(error)) from error
        finally:
            if response is not None:
                response.close()

    def _send(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> urllib3.BaseHTTPResponse:
        url = self.server_url + path
        # Signed is what arrives: the server's own path may come before ours.
        shown = self.identity.headers(method, url[self._origin_chars :], body) if self.identity else {}
        return self._pool.request(
            method,
            url,
            headers={**headers, **shown},
            body=body,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )

    def _learns_time(self, response: urllib3.BaseHTTPResponse) -> bool:
        return self.identity is not None and self.identity.learns_time(response.headers.get("Date"))

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        max_bytes: int,
        attempts: int | None = None,
        known_etag: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One small request, tried again while the service is away; returns only 2xx answers.

        Args:
            method: GET, POST or PUT.
            path: below the server's address.
            body: JSON.
            max_bytes: how long the answer may be.
            attempts: how often to try; None is as often as the limits say.
            known_etag: of an answer that is known already; 304 is then an answer as well.
            headers: besides those that every request has.

        Raises:
            ServiceUnavailableError: no answer, 5xx, too slow, or too many requests, at every attempt.
            ServiceRefusedError: another 4xx answer, a redirect, or an answer larger than `max_bytes`.
            EnrolmentError: the credential is not accepted.
        """
        backoff = Backoff(self.limits, self.clock)
        sent = {**(headers or {}), **({_IF_NONE_MATCH: known_etag} if known_etag else {})}
        for failures in range(attempts or self.limits.attempts):
            try:
                return self._call_once(method, path, body, max_bytes, sent)
            except ServiceUnavailableError as error:
                last = error
                if failures + 1 < (attempts or self.limits.attempts):
                    backoff.wait(failures, at_least_s=error.retry_after_s)
        raise last

    def _require_safe(self, location: str) -> str:
        """The address that a download is sent on to, if it is one that the server itself could have.

        Raises:
            ServiceRefusedError: it is not; a server must not send devices to what listens on their own machine or
                network, or off an encrypted connection.
        """
        try:
            parts = urlsplit(location)
            is_safe = parts.scheme == "https" or (parts.scheme == "http" and self.server_url.startswith("http://"))
            is_safe = is_safe and bool(parts.hostname) and not parts.username and location.isprintable()
        except ValueError:
            is_safe = False
        if not is_safe:
            raise ServiceRefusedError(
                f"{self.server_url} sends a download on to an address that is not https; nothing was fetched.",
                status=HTTPStatus.TEMPORARY_REDIRECT,
            )
        return location

    def _call_once(
        self, method: str, path: str, body: bytes | None, max_bytes: int, headers: Mapping[str, str]
    ) -> Answer:
        with self.open(method, path, body=body, headers=headers) as response:
            etag = response.headers.get("ETag")
            protocol = protocol_of(response.headers.get(PROTOCOL_HEADER))
            if response.status == HTTPStatus.NOT_MODIFIED:
                return Answer(response.status, b"", protocol, etag)
            raise_for_status(response, self.server_url, self.clock, self.limits)
            require_no_portal(response, self.server_url)
            # Small answers do not have to progress, they have to be there.
            with must_progress(response, every_s=self.limits.request_deadline_s, progress=lambda: 0):
                body = read_bounded(response, max_bytes, self.clock, self.limits)
                return Answer(response.status, body, protocol, etag)

    def _no_answer(self, error: Exception) -> str:
        if isinstance(error, SSLError):
            return f"{self.server_url} does not prove its identity (TLS: {error}). Check the address and the clock."
        return f"{self.server_url} does not answer ({type(error).__name__}). Check the network, or try again later."


def checked_server_url(server_url: str, *, allow_http: bool) -> str:
    """The server's address without a trailing slash.

    Raises:
        EnrolmentError: not an http(s) address, or plain http to another machine without `allow_http`.
    """
    parts = urlsplit(server_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise EnrolmentError(f"{server_url!r} is not a server address such as https://updates.example.org.")
    if parts.scheme == "http" and not (allow_http or _is_loopback(parts.hostname)):
        # Packages are signed, but over plain http anyone on the way reads and reuses the device's credential.
        raise EnrolmentError(
            f"{server_url} is plain http: anyone on the way could read this device's credential. Use https, or enrol "
            "with --allow-http on a private network."
        )
    return server_url.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
