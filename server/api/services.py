"""What the endpoints stand on, and who is calling."""

import hmac
import re
from dataclasses import dataclass, field
from typing import Annotated, Final, Generic, TypeVar

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field

from server.api.metrics import Metrics
from server.artifacts import ArtifactStore
from server.config import Settings
from server.errors import CredentialRefusedError
from server.registry import DeviceRecord, Registry
from server.signing import SignedMetadata

_DEVICE_CREDENTIAL: Final = re.compile(r"[0-9a-f]{32}\.[A-Za-z0-9_-]{43}")
_device_scheme = HTTPBearer(
    scheme_name="device", description="The credential that a device got when it enrolled.", auto_error=False
)
_operator_scheme = HTTPBearer(
    scheme_name="operator", description="The token in operator.token in the server's home.", auto_error=False
)
_Item = TypeVar("_Item")

PageLimit = Annotated[int, Query(ge=1, le=500, description="How many at most.", examples=[100])]


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything an endpoint may use."""

    settings: Settings
    registry: Registry
    artifacts: ArtifactStore
    metadata: SignedMetadata
    operator_token: str
    metrics: Metrics = field(default_factory=Metrics)


class Page(BaseModel, Generic[_Item]):
    """Some of a list, and where the rest begins."""

    items: tuple[_Item, ...]
    next: str | None = Field(description="Pass it as `after` for the next page; null when this is the last one.")


def page_of(items: tuple[_Item, ...], *, limit: int, cursor: str | None) -> Page[_Item]:
    """A page of at most ``limit`` items; ``cursor`` names the last one, if there is any."""
    return Page(items=items, next=cursor if len(items) == limit else None)


def get_services(request: Request) -> Services:
    """The services that the app was made with."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


def calling_device(
    services: ServicesDep, authorization: Annotated[HTTPAuthorizationCredentials | None, Depends(_device_scheme)]
) -> DeviceRecord:
    """The device whose credential came with the request.

    Raises:
        CredentialRefusedError: None came, or nobody was given it.
        ForbiddenError: The device was revoked.
    """
    credential = authorization.credentials if authorization else ""
    # Anything of another form is refused before the database is asked.
    if not _DEVICE_CREDENTIAL.fullmatch(credential):
        raise CredentialRefusedError(
            "This needs a device's credential: Authorization: Bearer <credential>. Enrol the device to get one."
        )
    return services.registry.authenticate(credential)


def require_operator(
    services: ServicesDep, authorization: Annotated[HTTPAuthorizationCredentials | None, Depends(_operator_scheme)]
) -> None:
    """Let only the operator pass.

    Raises:
        CredentialRefusedError: The operator's token did not come with the request.
    """
    token = authorization.credentials if authorization else ""
    if not hmac.compare_digest(token.encode(), services.operator_token.encode()):
        raise CredentialRefusedError(
            "This needs the operator's token: Authorization: Bearer <the text in operator.token in the server's home>."
        )


CallingDevice = Annotated[DeviceRecord, Depends(calling_device)]
