"""The update service's REST words, spoken from the device's side (`/v1`)."""

import json
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from client_sdk.errors import DeviceDiskError, ServiceRefusedError
from client_sdk.responses import STRONG_ETAG, printable
from client_sdk.transport import Transport
from delta_updates.manifest import MAX_FILE_BYTES
from delta_updates.offer import ROOM_HEADER, EnrolReply, EnrolRequest, KeyRequest, Offer, OutcomeReport, UpdateQuery

ENROL = "/v1/devices"
CHECK = "/v1/updates/check"
REPORT = "/v1/updates/report"
KEY = "/v1/devices/me/key"
METADATA = "/v1/metadata/"
TARGETS = "/v1/targets/"

_MAX_ANSWER_BYTES = 1 << 16
_Parsed = TypeVar("_Parsed", bound=BaseModel)


class UpdateService:
    """Enrol, ask for an offer, report an outcome."""

    def __init__(self, transport: Transport, *, memory: Path | None = None) -> None:
        """Choose a service.

        Args:
            transport: to it.
            memory: a file for what stands for its last "nothing new", so that repeating the question is cheap for it.
        """
        self._transport = transport
        self._spoken: int | None = None
        self._memory = memory

    @property
    def protocol(self) -> int:
        """What the service has answered with; before it has, 1: no words that the oldest would refuse."""
        return self._spoken or 1

    @property
    def has_spoken(self) -> bool:
        """Whether it has answered, so that its words are known."""
        return self._spoken is not None

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Trade a one-time enrolment token for this device's credential.

        Raises:
            ServiceUnavailableError: no answer. Not tried twice: the token may already be used up.
            ServiceRefusedError: the token is unknown, used or expired.
        """
        answer = self._transport.call(
            "POST", ENROL, body=request.model_dump_json().encode(), max_bytes=_MAX_ANSWER_BYTES, attempts=1
        )
        self._spoken = answer.protocol
        return _parse(EnrolReply, answer.body)

    def set_key(self, request: KeyRequest) -> None:
        """Make this device's public key known; saying it twice changes nothing.

        Raises:
            ServiceUnavailableError, ServiceRefusedError, EnrolmentError: see `Transport.call`.
        """
        self._transport.call("PUT", KEY, body=request.model_dump_json().encode(), max_bytes=_MAX_ANSWER_BYTES)

    def ask(self, query: UpdateQuery, *, free_bytes: int | None = None) -> Offer | None:
        """Ask for an update given what is installed; None when there is none for this device.

        Args:
            query: what is installed.
            free_bytes: of disk, for the update; no part of the question, which would never be the same twice.

        Raises:
            DeviceDiskError: there is an update, and no package of it fits.
            ServiceUnavailableError, ServiceRefusedError, EnrolmentError: see `Transport.call`.
        """
        try:
            answer = self._transport.call(
                "POST",
                CHECK,
                body=query.model_dump_json().encode(),
                max_bytes=_MAX_ANSWER_BYTES,
                known_etag=self._recall(),
                headers={} if free_bytes is None else {ROOM_HEADER: str(min(free_bytes, MAX_FILE_BYTES))},
            )
        except ServiceRefusedError as error:
            if error.status == HTTPStatus.CONFLICT:
                raise DeviceDiskError(str(error)) from error
            raise
        self._spoken = answer.protocol
        if answer.status == HTTPStatus.NO_CONTENT:
            self._remember(answer.etag)
        if answer.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            return None
        return _parse(Offer, answer.body)

    def _recall(self) -> str | None:
        with suppress(OSError, UnicodeDecodeError):
            if self._memory is not None and STRONG_ETAG.fullmatch(known := self._memory.read_text("ascii")):
                return known
        return None

    def _remember(self, etag: str | None) -> None:
        # Half a file or none is only a question asked in full, so nothing here has to be durable or to succeed.
        with suppress(OSError):
            if self._memory is not None and etag is not None and STRONG_ETAG.fullmatch(etag):
                self._memory.write_text(etag, "ascii")

    def report(self, report: OutcomeReport) -> None:
        """Deliver one outcome; nothing happens when the service has no word for it.

        Raises:
            ServiceUnavailableError, ServiceRefusedError, EnrolmentError: see `Transport.call`.
        """
        if not report.is_known_in(self.protocol):
            return
        body = json.dumps(report.in_protocol(self.protocol)).encode()
        self._transport.call("POST", REPORT, body=body, max_bytes=_MAX_ANSWER_BYTES, attempts=1)


def _parse(kind: type[_Parsed], body: bytes) -> _Parsed:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = printable(str(error).replace("\n", " "), max_chars=200)
        raise ServiceRefusedError(
            f"The service's answer is not a valid {kind.__name__} ({first}). Update the older of the two programs.",
            status=HTTPStatus.OK,
        ) from error
