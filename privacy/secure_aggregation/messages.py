"""What members and coordinator say to each other, in the order of a round; all sizes are bounded where they arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from privacy.secure_aggregation.masks import KEY_BYTES
from privacy.secure_aggregation.plan import MAX_MEMBERS
from privacy.secure_aggregation.shamir import SHARE_BYTES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A nonce, two shares, and the tag of the encryption.
NONCE_BYTES = 12
TAG_BYTES = 16
ENVELOPE_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES

MemberId = Annotated[int, Field(ge=1, lt=1 << 63)]
PublicKey = Annotated[bytes, Field(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Commitment = Annotated[bytes, Field(min_length=32, max_length=32)]
# Of the two shares in an envelope.
Commitments = Annotated[bytes, Field(min_length=64, max_length=64)]
Envelope = Annotated[bytes, Field(min_length=ENVELOPE_BYTES, max_length=ENVELOPE_BYTES)]
Share = Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class Advertisement(_Message):
    """Member to coordinator, first: one key for envelopes, one for masks, both made for this round alone."""

    member: MemberId
    envelope_key: PublicKey
    mask_key: PublicKey


class Neighbours(_Message):
    """Coordinator to member: the advertisements of its neighbours."""

    of: MemberId
    neighbours: tuple[Advertisement, ...] = Field(max_length=MAX_MEMBERS)


class Envelopes(_Message):
    """Member to coordinator, second: for each neighbour an envelope, and commitments to what is in them.

    The commitments let a wrong share be told from a right one, and the secret that was shared from any other.
    """

    member: MemberId
    seed_commitment: Commitment
    envelopes: dict[MemberId, Envelope] = Field(max_length=MAX_MEMBERS)
    share_commitments: dict[MemberId, Commitments] = Field(max_length=MAX_MEMBERS)


class Delivered(_Message):
    """Coordinator to member: the envelopes of its neighbours that are still there, by sender."""

    to: MemberId
    envelopes: dict[MemberId, Envelope] = Field(max_length=MAX_MEMBERS)


class Survivors(_Message):
    """Coordinator to member: which of its neighbours sent a masked vector, and which did not."""

    to: MemberId
    alive: frozenset[MemberId] = Field(max_length=MAX_MEMBERS)
    silent: frozenset[MemberId] = Field(max_length=MAX_MEMBERS)


class Shares(_Message):
    """Member to coordinator, last: of those alive a share of their mask's seed, of those silent one of their key.

    Whose envelope could not be opened is in neither.
    """

    member: MemberId
    seeds: dict[MemberId, Share] = Field(max_length=MAX_MEMBERS)
    keys: dict[MemberId, Share] = Field(max_length=MAX_MEMBERS)


class MaskedVector:
    """Member to coordinator, third: the vector under its masks; numbers modulo 2^32, shape (length,)."""

    def __init__(self, member: int, values: NDArray[np.uint32]) -> None:
        self.member = member
        self.values = values
