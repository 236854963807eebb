"""What the registry answers with about devices that speak hawkBit's protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from server.registry.records import DeviceRecord, OfferRecord

# refused: the device went on with what it was asked to give up; canceled: it gave it up; closed: it said how it ended.
ActionState = Literal["open", "canceling", "refused", "canceled", "closed"]


@dataclass(frozen=True, kw_only=True)
class ControllerRecord:
    """A device under the name that hawkBit's protocol knows it by; ``attributes`` are what it said of itself."""

    controller_id: str
    device: DeviceRecord
    attributes: Mapping[str, str] | None


@dataclass(frozen=True, kw_only=True)
class GatewayTokenRecord:
    """One gateway token; the token itself is stored nowhere. ``devices`` enrolled themselves with it."""

    token_id: int
    model: str
    device_limit: int
    devices: int
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class ActionRecord:
    """An offer as an action of hawkBit's protocol."""

    action_id: int
    state: ActionState
    offer: OfferRecord


@dataclass(frozen=True, kw_only=True)
class FailedAttempt:
    """A device reported that it could not install this package."""

    package_path: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class FileDigests:
    """A stored file: its length in bytes, and the hashes that hawkBit's clients check."""

    sha256: str
    length: int
    sha1: str
    md5: str
