"""Proof that whoever sends a form is the operator, not somebody at an open session: the password, once more."""

from fastapi import Request

from server.api.services import Services, address_of
from server.console.visits import Visit
from server.errors import CredentialRefusedError, ForbiddenError


def require_own_password(request: Request, services: Services, visit: Visit, *, password: str) -> None:
    """Refuse what gives access for long unless the operator's own password comes with it.

    A session that was left open or stolen must not leave an account or a token behind. Wrong passwords count as
    failed logins do.

    Raises:
        ForbiddenError: It is not the password.
        TooManyRequestsError: Too many were wrong.
    """
    throttles, address, name = services.throttles, address_of(request), visit.caller.name
    throttles.logins_from.require(address, of="wrong passwords from here")
    throttles.logins_as.require(name, of="wrong passwords with this name")
    try:
        services.registry.operator_by_password(name, password)
    except CredentialRefusedError:
        raise ForbiddenError(
            f"That is not the password of {name}. Go back, and type your own password in the last field."
        ) from None
    throttles.logins_from.give_back(address)
    throttles.logins_as.give_back(name)
