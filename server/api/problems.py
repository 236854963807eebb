"""Errors as problem documents (RFC 9457), with a detail in the user's words and nothing of the server's inside."""

import logging
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from server.errors import (
    ConflictError,
    CredentialRefusedError,
    EnrolmentRefusedError,
    ForbiddenError,
    InvalidRecordError,
    NotFoundError,
    ServerError,
    TooManyRequestsError,
)

MEDIA_TYPE: Final = "application/problem+json"
_log = logging.getLogger("lamella.api")

_STATUS: Final[tuple[tuple[type[ServerError], HTTPStatus], ...]] = (
    (CredentialRefusedError, HTTPStatus.UNAUTHORIZED),
    (ForbiddenError, HTTPStatus.FORBIDDEN),
    # Gone, not 401: a device must not think that its credential is the trouble.
    (EnrolmentRefusedError, HTTPStatus.GONE),
    (NotFoundError, HTTPStatus.NOT_FOUND),
    (ConflictError, HTTPStatus.CONFLICT),
    (InvalidRecordError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (TooManyRequestsError, HTTPStatus.TOO_MANY_REQUESTS),
)
_UNAVAILABLE: Final = "The service cannot answer just now. Try again later; the operator's log says why."
_ABOUT: Final = {
    HTTPStatus.BAD_REQUEST: "The request's body is not JSON.",
    HTTPStatus.UNAUTHORIZED: "No credential was sent, or nobody was given this one.",
    HTTPStatus.FORBIDDEN: "The caller is known, and may not do this.",
    HTTPStatus.NOT_FOUND: "There is nothing of that name for this caller.",
    HTTPStatus.CONFLICT: "What exists already forbids this.",
    HTTPStatus.GONE: "The enrolment token is unknown, used or expired.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is longer than the service reads.",
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: "The range begins after the end of the file.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "The request's values do not fit; the detail names the first that does not.",
    HTTPStatus.TOO_MANY_REQUESTS: "The caller asks too often; `Retry-After` says in how many seconds to come back.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The service cannot answer just now; try again later.",
}


class Problem(BaseModel):
    """What went wrong and what to do next."""

    type: str = Field(default="about:blank", description="Kind of problem; the status says all there is.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What happened and what to do next.")


_SCHEMA: Final = Problem.model_json_schema()


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem document as an answer."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(body.model_dump(), status, {"cache-control": "no-store", **(headers or {})}, MEDIA_TYPE)


def declare(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI text for the errors that an operation can answer with, each with an example."""
    return {
        status.value: {
            "description": _ABOUT[status],
            "content": {
                MEDIA_TYPE: {
                    "schema": _SCHEMA,
                    "example": {
                        "type": "about:blank",
                        "title": status.phrase,
                        "status": status.value,
                        "detail": _ABOUT[status],
                    },
                }
            },
        }
        for status in (*statuses, HTTPStatus.SERVICE_UNAVAILABLE)
    }


def answer_to(error: ServerError) -> JSONResponse:
    """The answer to one of the server's own errors; what only concerns the operator is logged, not sent."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return problem(status, str(error), _headers(error, status))
    _log.error("%s: %s", type(error).__name__, error)
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, _UNAVAILABLE, {"retry-after": "30"})


def status_of(error: ServerError) -> HTTPStatus:
    """The status that says whose fault an error is; what only concerns the operator's machine is unavailability."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.SERVICE_UNAVAILABLE)


def _headers(error: ServerError, status: HTTPStatus) -> dict[str, str] | None:
    if isinstance(error, TooManyRequestsError):
        return {"retry-after": str(error.retry_after_s)}
    return {"www-authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem document."""

    @app.exception_handler(ServerError)
    def on_server_error(_request: Request, error: ServerError) -> JSONResponse:
        return answer_to(error)

    @app.exception_handler(RequestValidationError)
    def on_invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not echoed: it may be a secret in the wrong field.
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{place}: {fault['msg']}")

    @app.exception_handler(HTTPException)
    def on_http(_request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))
