"""The update service's REST words, spoken from the device's side (`/v1`)."""

import json
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from client_sdk.errors import ServiceRefusedError
from client_sdk.transport import Transport, printable
from delta_updates.offer import EnrolReply, EnrolRequest, Offer, OutcomeReport, UpdateQuery

ENROL = "/v1/devices"
CHECK = "/v1/updates/check"
REPORT = "/v1/updates/report"
METADATA = "/v1/metadata/"
TARGETS = "/v1/targets/"

_MAX_ANSWER_BYTES = 1 << 16
_Parsed = TypeVar("_Parsed", bound=BaseModel)


class UpdateService:
    """Enrol, ask for an offer, report an outcome."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        # What the service has answered with; until it did, no words that the oldest would refuse.
        self._spoken = 1

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Trade a one-time enrolment token for this device's credential.

        Raises:
            ServiceUnavailableError: no answer. Not tried twice: the token may already be used up.
            ServiceRefusedError: the token is unknown, used or expired.
        """
        answer = self._transport.call(
            "POST", ENROL, body=request.model_dump_json().encode(), max_bytes=_MAX_ANSWER_BYTES, attempts=1
        )
        return _parse(EnrolReply, answer.body)

    def ask(self, query: UpdateQuery) -> Offer | None:
        """Ask for an update given what is installed; None when there is none for this device.

        Raises:
            ServiceUnavailableError, ServiceRefusedError, EnrolmentError: see `Transport.call`.
        """
        answer = self._transport.call("POST", CHECK, body=query.model_dump_json().encode(), max_bytes=_MAX_ANSWER_BYTES)
        self._spoken = answer.protocol
        if answer.status == HTTPStatus.NO_CONTENT:
            return None
        return _parse(Offer, answer.body)

    def report(self, report: OutcomeReport) -> None:
        """Deliver one outcome.

        Raises:
            ServiceUnavailableError, ServiceRefusedError, EnrolmentError: see `Transport.call`.
        """
        body = json.dumps(report.in_protocol(self._spoken)).encode()
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
