"""The wire messages of protocol 1 as they were, frozen: what an agent or a service of the release before understands.

Never change it to make a test pass: a device in the field cannot be changed either.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
Secret = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,512}$")]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Version = Annotated[int, Field(ge=1, le=2**31, strict=True)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Length = Annotated[int, Field(ge=0, le=2**50, strict=True)]
Path = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,200}$")]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EnrolRequest(_Message):
    token: Secret
    name: Annotated[str, Field(min_length=1, max_length=64)]


class EnrolReply(_Message):
    device_id: Identifier
    credential: Secret


class EnrolmentFile(_Message):
    server_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$", max_length=2_000)]
    model: ModelName
    token: Secret
    root: dict[str, Any]


class UpdateQuery(_Message):
    model: ModelName
    installed_version: Version | None = None
    installed_hash: Sha256 | None = None
    only_full: bool = False


class PackageRef(_Message):
    path: Path
    length: Length
    sha256: Sha256
    source_version: Version | None = None


class Offer(_Message):
    offer_id: Identifier
    model: ModelName
    version: Version
    tree_hash: Sha256
    manifest_path: Path
    package: PackageRef


class OutcomeReport(_Message):
    offer_id: Identifier
    version: Version
    outcome: Literal["downloaded", "applied", "confirmed", "reverted", "failed"]
    reason: Annotated[str, Field(max_length=500)] = ""
    bytes_downloaded: Length = 0
    apply_seconds: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)] = 0.0
