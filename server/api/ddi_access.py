"""Who is calling in hawkBit's protocol, and its way of telling errors."""

import logging
import re
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from server.api.services import Services, ServicesDep
from server.ddi import Links, problem_document
from server.errors import (
    ConflictError,
    CredentialRefusedError,
    ForbiddenError,
    GoneError,
    InvalidRecordError,
    NotFoundError,
    ServerError,
)
from server.registry import ControllerRecord

_AUTHORIZATION: Final = re.compile(r"(TargetToken|GatewayToken) +([A-Za-z0-9._~-]{1,128})", re.IGNORECASE)
_ANSWERS: Final[tuple[tuple[type[ServerError], HTTPStatus, str], ...]] = (
    (CredentialRefusedError, HTTPStatus.UNAUTHORIZED, "rest.unauthorized"),
    (ForbiddenError, HTTPStatus.FORBIDDEN, "insufficientpermission"),
    (NotFoundError, HTTPStatus.NOT_FOUND, "repo.entitiyNotFound"),  # hawkBit's own spelling
    (GoneError, HTTPStatus.GONE, "repo.noUpdateAction"),
    (ConflictError, HTTPStatus.CONFLICT, "repo.entitiyAlreadyExists"),
    (InvalidRecordError, HTTPStatus.BAD_REQUEST, "rest.body.notReadable"),
)
# What a controller is called becomes part of URLs and of terminals.
ControllerId = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9._:@+-]{1,64}$",
        description="What the device calls itself.",
        openapi_examples={"a controller": {"value": "gate-7"}},
    ),
]
_UNAVAILABLE: Final = "The service cannot answer just now. Try again later; the operator's log says why."
_log = logging.getLogger("lamella.api")


class DdiRoute(APIRoute):
    """A route whose errors are documents of hawkBit."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with an answer for each error."""
        handle = super().get_route_handler()

        async def handle_in_words(request: Request) -> Response:
            try:
                return await handle(request)
            except ServerError as error:
                return _answer_to(error)
            except RequestValidationError as error:
                # What was sent is not echoed: it may be a secret in the wrong field.
                fault = error.errors()[0]
                place = ".".join(str(part) for part in fault["loc"])
                return _problem(HTTPStatus.BAD_REQUEST, "rest.param.invalid", f"{place}: {fault['msg']}")

        return handle_in_words


def calling_controller(
    services: ServicesDep,
    request: Request,
    tenant: Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")],
    controller_id: ControllerId,
) -> ControllerRecord:
    """The controller whose token, or whose gateway's token, came with the request; its model is the tenant.

    Raises:
        CredentialRefusedError: None came, or it is not one of this controller or model.
        ForbiddenError: The device was revoked, or the gateway token has enrolled as many as it may.
    """
    match = _AUTHORIZATION.fullmatch(request.headers.get("authorization", "").strip())
    # Anything of another form is refused before the database is asked.
    if match is None:
        raise CredentialRefusedError(
            "This needs a token: Authorization: TargetToken <token>, or GatewayToken <token>. "
            "`lamella ddi target-token` makes one."
        )
    registry, model = services.registry, tenant.lower()  # hawkBit's tenants are often written in capitals
    if match[1].lower() == "targettoken":
        return registry.target_by_token(model, controller_id, match[2])
    return registry.target_by_gateway(model, controller_id, match[2])


CallingController = Annotated[ControllerRecord, Depends(calling_controller)]


def controller_links(services: Services, caller: ControllerRecord) -> Links:
    """The URLs of a controller, where devices reach the service."""
    return Links(root=f"{services.settings.public_url}/{caller.device.model}/controller/v1/{caller.controller_id}")


def _answer_to(error: ServerError) -> Response:
    for kind, status, code in _ANSWERS:
        if isinstance(error, kind):
            return _problem(status, code, str(error))
    _log.error("%s: %s", type(error).__name__, error)
    return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "internal", _UNAVAILABLE)


def _problem(status: HTTPStatus, code: str, message: str) -> Response:
    headers = {"cache-control": "no-store"}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "TargetToken"
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = "30"
    return JSONResponse(problem_document(code, message), status, headers)
