"""What the endpoints stand on, and who is calling."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, Generic, TypeVar

from fastapi import Depends, Header, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from sqlalchemy import Row

from delta_updates import PROTOCOL, PROTOCOL_HEADER
from server.api.arrivals import Arrivals
from server.api.callers import Caller, TokenVerifier, refuse_unless
from server.api.metrics import Metrics
from server.api.remembered import Remembered
from server.api.seen import SeenDevices
from server.api.signatures import SignedRequest
from server.artifacts import ArtifactStore
from server.config import Settings
from server.errors import CredentialRefusedError
from server.registry import AskingDevice, DeviceRecord, Registry, Role
from server.registry.asking import by_credential, by_key
from server.registry.fleet import Move
from server.signing import SignedMetadata
from server.throttle import TokenBuckets

_DEVICE_CREDENTIAL: Final = re.compile(r"[0-9a-f]{32}\.[A-Za-z0-9_-]{43}")
_device_scheme = HTTPBearer(
    scheme_name="device",
    description="The credential that a device got when it enrolled, until the service knows its key. From then on "
    "requests are signed (`Signature`, RFC 9421) and there is no credential.",
    auto_error=False,
)
_operator_scheme = HTTPBearer(
    scheme_name="operator", description="An operator's API token, or the text in operator.token.", auto_error=False
)
_Item = TypeVar("_Item")
_READING: Final = frozenset({"GET", "HEAD"})

Protocol = Annotated[
    str | None,
    Header(
        alias=PROTOCOL_HEADER,
        description="Newest protocol of the device; 1 if it says none.",
        openapi_examples={"now": {"value": str(PROTOCOL)}},
    ),
]
PageLimit = Annotated[int, Query(ge=1, le=500, description="How many at most.", examples=[100])]


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything an endpoint may use."""

    settings: Settings
    registry: Registry
    artifacts: ArtifactStore
    metadata: SignedMetadata
    operator_token: str = field(repr=False)
    tokens: TokenVerifier
    throttles: "Throttles"
    seen: SeenDevices
    arrivals: Arrivals
    metrics: Metrics = field(default_factory=Metrics)
    # A hundred thousand devices take two seconds to look through.
    moves: Remembered[tuple[Move, ...]] = field(default_factory=Remembered)


class Throttles:
    """How often callers may ask; each process of the API counts on its own."""

    def __init__(self, settings: Settings) -> None:
        per_device = settings.device_requests_per_minute
        self.devices = TokenBuckets(per_minute=per_device, burst=per_device)
        self.enrolments = TokenBuckets(per_minute=60, burst=60)
        self.logins_from = TokenBuckets(per_minute=settings.login_attempts_per_minute, burst=10)
        self.logins_as = TokenBuckets(per_minute=settings.login_attempts_per_minute, burst=10)


class Page(BaseModel, Generic[_Item]):
    """Some of a list, and where the rest begins."""

    items: tuple[_Item, ...]
    next: str | None = Field(description="Pass it as `after` for the next page; null when this is the last one.")


def page_of(items: tuple[_Item, ...], *, limit: int, cursor: str | None) -> Page[_Item]:
    """A page of at most ``limit`` items; ``cursor`` names the last one, if there is any."""
    return Page(items=items, next=cursor if len(items) == limit else None)


# No thread of its own: it waits for nothing.
async def get_services(request: Request) -> Services:
    """The services that the app was made with."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Which device a request says it is of; whether it is, what is known of that device decides."""

    device_id: str
    services: Services
    proved_by: Callable[[Row[Any] | None], AskingDevice]

    def look_up(self) -> AskingDevice:
        """The device, by a read of its own.

        Raises:
            CredentialRefusedError: It is not of that device.
            ForbiddenError: The device was revoked.
            TooManyRequestsError: It asks too often.
        """
        return self._proved(self.services.registry.rows_asking([self.device_id]).get(self.device_id))

    async def arrive(self) -> AskingDevice:
        """The device, by a read for all that ask just now; raises as `look_up` does."""
        return self._proved(await self.services.arrivals.row(self.device_id))

    def _proved(self, row: Row[Any] | None) -> AskingDevice:
        asking = self.proved_by(row)
        self.services.throttles.devices.require(asking.device.device_id, of="requests of this device")
        return asking


async def claimed_device(
    request: Request, authorization: Annotated[HTTPAuthorizationCredentials | None, Depends(_device_scheme)]
) -> Claim:
    """Who a request says it is of.

    Raises:
        CredentialRefusedError: Nothing came that could be right, or it is signed in another way than devices do.
    """
    services = await get_services(request)
    signed = SignedRequest.of(request, await request.body())  # which is in memory already
    if signed is not None:
        proved_by = partial(by_key, require_by=signed.require_by)
        return Claim(device_id=signed.claimed.key_id, services=services, proved_by=proved_by)
    credential = authorization.credentials if authorization else ""
    # Anything of another form is refused before the database is asked.
    if not _DEVICE_CREDENTIAL.fullmatch(credential):
        raise CredentialRefusedError(
            "This needs a signed request of an enrolled device, or its credential: Authorization: Bearer "
            "<credential>. Enrol the device to get one."
        )
    device_id, _, secret = credential.partition(".")
    return Claim(device_id=device_id, services=services, proved_by=partial(by_credential, secret=secret))


ClaimedDevice = Annotated[Claim, Depends(claimed_device)]


def require_key(services: Services, device: DeviceRecord) -> None:
    """Let only devices pass that sign their requests, where that is asked for.

    Raises:
        CredentialRefusedError: It showed a credential where keys are required.
    """
    if services.settings.require_device_keys and not device.has_key:
        raise CredentialRefusedError(
            "This service answers signed requests only. Update the device's agent: it then makes itself a key."
        )


def calling_device(services: ServicesDep, claim: ClaimedDevice) -> DeviceRecord:
    """The device that signed the request, or whose credential came with it.

    Raises:
        CredentialRefusedError: Nothing came, or nobody was given it; or it is a credential where keys are required.
        ForbiddenError: The device was revoked.
        TooManyRequestsError: It asks too often.
    """
    device = claim.look_up().device
    require_key(services, device)
    return device


def known_device(claim: ClaimedDevice) -> DeviceRecord:
    """The device that calls, also one whose key is still to come; raises as `calling_device` does."""
    return claim.look_up().device


class NeedsRole:
    """Lets only operators pass whose role is enough; the operator who calls."""

    def __init__(self, role: Role) -> None:
        self.role = role

    def __call__(
        self,
        request: Request,
        services: ServicesDep,
        authorization: Annotated[HTTPAuthorizationCredentials | None, Depends(_operator_scheme)],
    ) -> Caller:
        """The operator whose token came with the request.

        Raises:
            CredentialRefusedError: None came, or nobody was given it.
            ForbiddenError: The operator's role is not enough.
        """
        caller = services.tokens.caller(authorization.credentials if authorization else "")
        if request.method in _READING:
            caller.require(self.role)
        else:
            refuse_unless(services.registry, caller, self.role, action=f"{request.method} {request.url.path}")
        return caller


def address_of(request: Request) -> str:
    """Where a request came from; a proxy's X-Forwarded-For is believed when uvicorn believes it."""
    return request.client.host if request.client else ""


CallingDevice = Annotated[DeviceRecord, Depends(calling_device)]
KnownDevice = Annotated[DeviceRecord, Depends(known_device)]
Viewer = Annotated[Caller, Depends(NeedsRole(Role.VIEWER))]
Publisher = Annotated[Caller, Depends(NeedsRole(Role.PUBLISHER))]
Admin = Annotated[Caller, Depends(NeedsRole(Role.ADMIN))]
