"""The words between a device and the update service; both apps parse them with these classes.

Every field is bounded, and unknown fields are refused: neither side trusts the other's bytes.

So the two have to agree on the fields. A device says with every request how new a protocol it speaks, in the header
`Lamella-Protocol`; the service answers in words that this protocol has, and says which one that is in the same header.
Whoever says nothing speaks protocol 1. Change rule: a new field raises `PROTOCOL`; it goes to devices that speak it
only, and devices send it only to a service that has answered with it.

| protocol | adds | packages of format |
|---|---|---|
| 1 | | 1 to 3 |
| 2 | `Offer.chain` | 1 to 3 |
| 3 | `OutcomeReport.quality` | 1 to 3 |
| 4 | `KeyRequest`, signed requests; `Outcome.TESTED` | 1 to 4 |
| 5 | `Outcome.DECLINED` | 1 to 4 |
| 6 | | 1 to 5 |

A device is offered packages that it reads and no others: full ones are in format 3, which every device reads.
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from delta_updates.manifest import FileLength, ModelName, SafePath, Sha256, VersionNumber

PROTOCOL = 6
PROTOCOL_HEADER = "Lamella-Protocol"
ROOM_HEADER = "Lamella-Free-Bytes"
"""The disk bytes that a device has for an update, sent with a check. No part of the question: it differs each time."""
REDIRECT_HEADER = "Lamella-Redirects"
"""A device that sends it with a download follows one redirect, to where its credential does not go."""

MAX_CHAIN = 8

_LAST_FORMATS = {1: 3, 2: 3, 3: 3, 4: 4, 5: 4, 6: 5}


def protocol_of(header: str | None) -> int:
    """The protocol that both sides speak, given the other's header; nonsense reads as the oldest."""
    if header is None or not (header.isascii() and header.isdecimal()) or len(header) > 4:  # noqa: PLR2004 - bounded
        return 1
    return min(PROTOCOL, max(1, int(header)))


def last_format(protocol: int) -> int:
    """The newest package format that devices of a protocol read."""
    return _LAST_FORMATS[protocol]


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters are allowed")
    return text


Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
Secret = Annotated[str, Field(pattern=r"^[A-Za-z0-9._~-]{1,512}$")]
DeviceName = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_check_printable)]
Reason = Annotated[str, Field(max_length=500)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EnrolRequest(_Message):
    """A device asks to become known, with the one-time token that the operator gave it."""

    token: Secret
    name: DeviceName


class EnrolReply(_Message):
    """The device's identity, and the credential that it shows until the service knows its key."""

    device_id: Identifier
    credential: Secret


class KeyRequest(_Message):
    """A device makes the public half of its key known: from then on it signs its requests (`request_signature`).

    Attributes:
        public_key: Ed25519, 32 bytes.
        proof: signature of `key_proof` by that key, 64 bytes: nobody can take another's key for their own.
    """

    public_key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
    proof: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{86}$")]


class EnrolmentFile(_Message):
    """What the operator hands to a device out of band: where to go, and the TUF root metadata it trusts."""

    server_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$", max_length=2_000)]
    model: ModelName
    token: Secret
    root: dict[str, Any]


class UpdateQuery(_Message):
    """What is installed now; `only_full` after a delta did not work."""

    model: ModelName
    installed_version: VersionNumber | None = None
    installed_hash: Sha256 | None = None
    only_full: bool = False


class PackageRef(_Message):
    """One package: its TUF target path, length in bytes, hash, and the version it starts from (None: full)."""

    path: SafePath
    length: FileLength
    sha256: Sha256
    source_version: VersionNumber | None = None


class ChainStep(_Message):
    """One delta of a chain: the version that it makes, and the signed manifest of that."""

    version: VersionNumber
    tree_hash: Sha256
    manifest_path: SafePath
    package: PackageRef


class Offer(_Message):
    """Go to this version with this package. It only chooses among signed versions; the device checks signatures.

    Attributes:
        package: a delta from what the device has, or the full package.
        chain: deltas that lead there over other versions, and are fewer bytes than `package`. They are tried first.
    """

    offer_id: Identifier
    model: ModelName
    version: VersionNumber
    tree_hash: Sha256
    manifest_path: SafePath
    package: PackageRef
    chain: Annotated[tuple[ChainStep, ...], Field(max_length=MAX_CHAIN)] = ()

    def in_protocol(self, protocol: int) -> dict[str, Any]:
        """This offer as JSON values, in words that `protocol` has."""
        return self.model_dump(mode="json", exclude={"chain"} if protocol < 2 else None)  # noqa: PLR2004 - see above


class Outcome(StrEnum):
    """How far a device came with an offer; declined: nothing is wrong with it, but the owner wants none such."""

    DOWNLOADED = "downloaded"
    APPLIED = "applied"
    TESTED = "tested"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"
    FAILED = "failed"
    DECLINED = "declined"


class Quality(_Message):
    """What a device measured with a new version, sent when its owner agreed; each value may be left away.

    Attributes:
        loss_increase: nats per token by which the loss on the device's own text rose over the version before, with
            noise that the device added.
        tokens_per_second: of generation.
        memory_bytes: largest resident set of the process that answers.
    """

    loss_increase: Annotated[float, Field(ge=-1e3, le=1e3, allow_inf_nan=False)] | None = None
    tokens_per_second: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    memory_bytes: FileLength | None = None


class OutcomeReport(_Message):
    """What a device tells about one offer; `quality` from protocol 3 on, that it was tested from 4, declined from 5."""

    offer_id: Identifier
    version: VersionNumber
    outcome: Outcome
    reason: Reason = ""
    bytes_downloaded: FileLength = 0
    apply_seconds: Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)] = 0.0
    quality: Quality | None = None

    def is_known_in(self, protocol: int) -> bool:
        """Whether `protocol` has a word for this outcome, or one that comes near."""
        return self.outcome is not Outcome.TESTED or protocol >= 4  # noqa: PLR2004 - see above

    def in_protocol(self, protocol: int) -> dict[str, Any]:
        """This report as JSON values, in words that `protocol` has."""
        is_known = protocol >= 3 and self.quality is not None  # noqa: PLR2004 - see above
        told = self.model_dump(mode="json", exclude=None if is_known else {"quality"})
        if self.outcome is Outcome.DECLINED and protocol < 5:  # noqa: PLR2004 - see above
            # An older service has no other word for a version that was not taken; the reason says which it was.
            told["outcome"] = Outcome.FAILED.value
        return told
