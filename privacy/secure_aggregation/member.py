"""One device in a secure sum: four steps, each once, and a refusal whenever the server asks for more than it may."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import BaseModel, ConfigDict

from privacy.errors import SecureSumError
from privacy.secure_aggregation.masks import add_mask, agreed_key, derived
from privacy.secure_aggregation.messages import (
    NONCE_BYTES,
    Advertisement,
    Delivered,
    Envelopes,
    MaskedVector,
    Neighbours,
    Shares,
    Survivors,
)
from privacy.secure_aggregation.plan import RoundPlan  # noqa: TC001 - pydantic reads it
from privacy.secure_aggregation.shamir import SECRET_BYTES, SHARE_BYTES, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

M = TypeVar("M")
ShareKind = Literal["seed", "key"]


class _Kept(BaseModel):
    """A member between two steps."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    plan: RoundPlan
    number: int
    envelope_key: bytes
    mask_secret: bytes
    seed: bytes
    neighbours: tuple[Advertisement, ...]
    held: dict[int, bytes]
    next_step: str


class Member:
    """A device's side. Its keys, seed and shares live in this object and are gone with it.

    Each step can be taken once, in order. A step that raises ends the member's part: nothing is said again.

    Args:
        plan: What was agreed; the device must have checked it against what it trains for.
        number: This member's number in the round, positive.
    """

    def __init__(self, plan: RoundPlan, number: int) -> None:
        self._plan, self._number = plan, number
        self._envelope_key = X25519PrivateKey.generate()
        self._mask_secret = os.urandom(SECRET_BYTES)
        self._seed = os.urandom(SECRET_BYTES)
        self._neighbours: dict[int, Advertisement] = {}
        # What each neighbour that is still there gave this member to hold; None: its envelope could not be opened.
        self._held: dict[int, tuple[bytes, bytes] | None] = {}
        self._next = "advertise"

    def to_bytes(self) -> bytes:
        """Everything of this member between two steps, its secrets included: for a store that only the device reads."""
        kept = _Kept(
            plan=self._plan,
            number=self._number,
            envelope_key=self._envelope_key.private_bytes_raw(),
            mask_secret=self._mask_secret,
            seed=self._seed,
            neighbours=tuple(self._neighbours.values()),
            held={other: b"".join(both or ()) for other, both in self._held.items()},
            next_step=self._next,
        )
        return kept.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Member:
        """The member that `to_bytes` wrote down.

        Raises:
            SecureSumError: These are other bytes.
        """
        try:
            kept = _Kept.model_validate_json(raw)
            member = cls(kept.plan, kept.number)
            member._envelope_key = X25519PrivateKey.from_private_bytes(kept.envelope_key)
        except ValueError:
            raise SecureSumError("what this device kept of the round cannot be read; it sits this one out") from None
        member._mask_secret, member._seed, member._next = kept.mask_secret, kept.seed, kept.next_step
        member._neighbours = {one.member: one for one in kept.neighbours}
        member._held = {
            other: (both[:SHARE_BYTES], both[SHARE_BYTES:]) if both else None for other, both in kept.held.items()
        }
        return member

    @property
    def plan(self) -> RoundPlan:
        """What was agreed."""
        return self._plan

    def advertise(self) -> Advertisement:
        """The public halves of two fresh keys."""
        self._begin("advertise")
        return self._went_well(
            "share",
            Advertisement(
                member=self._number,
                envelope_key=self._envelope_key.public_key().public_bytes_raw(),
                mask_key=self._mask_key.public_key().public_bytes_raw(),
            ),
        )

    def share(self, told: Neighbours) -> Envelopes:
        """Shares of this member's seed and key, each pair in an envelope that one neighbour alone can open.

        Raises:
            SecureSumError: Fewer neighbours than the threshold, the same one twice, itself among them, or bad keys.
        """
        self._begin("share")
        found = {one.member: one for one in told.neighbours}
        if told.of != self._number or len(found) != len(told.neighbours) or self._number in found:
            raise SecureSumError("the server named neighbours for another member, twice, or this member itself")
        if not self._plan.threshold <= len(found) <= self._plan.neighbours:
            raise SecureSumError(f"{len(found)} neighbours: the plan has {self._plan.neighbours}")
        keys = {one.envelope_key for one in found.values()} | {one.mask_key for one in found.values()}
        if len(keys) != 2 * len(found):
            raise SecureSumError("two neighbours have the same key: they are one")
        self._neighbours = found
        for other in found.values():
            pair_mask_key(self._plan, self._mask_key, self._number, other)  # now, not after the training
        seeds = split(self._seed, sorted(found), threshold=self._plan.threshold)
        secrets = split(self._mask_secret, sorted(found), threshold=self._plan.threshold)
        return self._went_well(
            "open",
            Envelopes(
                member=self._number,
                seed_commitment=seed_commitment(self._plan, self._number, self._seed),
                envelopes={other: self._sealed(other, seeds[other] + secrets[other]) for other in sorted(found)},
                share_commitments={
                    other: share_commitment(self._plan, "seed", self._number, other, seeds[other])
                    + share_commitment(self._plan, "key", self._number, other, secrets[other])
                    for other in sorted(found)
                },
            ),
        )

    def open(self, told: Delivered) -> None:
        """Take what neighbours gave this member to hold; before anything is spent on the vector.

        An envelope that was changed, swapped or is of another round is put aside: this member can give back no share of
        its sender's, and other neighbours can.

        Raises:
            SecureSumError: Too few neighbours are left, or too few envelopes can be opened.
        """
        self._begin("open")
        if told.to != self._number or not set(told.envelopes) <= set(self._neighbours):
            raise SecureSumError("envelopes for another member, or from somebody who is no neighbour")
        if len(told.envelopes) < self._plan.threshold:
            raise SecureSumError(f"only {len(told.envelopes)} neighbours are left, fewer than {self._plan.threshold}")
        self._held = {other: self._opened(other, sealed) for other, sealed in told.envelopes.items()}
        opened = len(self._held) - len(self.unopened)
        if opened < self._plan.threshold:
            raise SecureSumError(f"only {opened} envelopes can be opened, fewer than {self._plan.threshold}")
        self._went_well("mask", None)

    @property
    def unopened(self) -> frozenset[int]:
        """The neighbours whose envelopes could not be opened."""
        return frozenset(other for other, both in self._held.items() if both is None)

    def mask(self, vector: NDArray[np.uint32]) -> MaskedVector:
        """The vector under this member's own mask and one with each neighbour that is still there.

        Raises:
            ValueError: The vector has another length or type.
        """
        self._begin("mask")
        if vector.shape != (self._plan.length,) or vector.dtype != np.uint32:
            raise ValueError(f"the plan sums {self._plan.length} numbers of 32 bits, not {vector.dtype} {vector.shape}")
        masked = vector.copy()
        add_mask(masked, own_mask_key(self._plan, self._number, self._seed), sign=1)
        for other in sorted(self._held):
            key = pair_mask_key(self._plan, self._mask_key, self._number, self._neighbours[other])
            add_mask(masked, key, sign=sign_of(self._number, other))
        return self._went_well("reveal", MaskedVector(self._number, masked))

    def reveal(self, told: Survivors) -> Shares:
        """One share of each neighbour's secret: of its seed if it is alive, of its key if it fell silent, never both.

        Raises:
            SecureSumError: The lists overlap or name others than the neighbours whose envelopes came, or too few live.
        """
        self._begin("reveal")
        if told.to != self._number or told.alive & told.silent or told.alive | told.silent != set(self._held):
            raise SecureSumError("the server's lists of who is alive and who is silent do not fit: nothing is revealed")
        if len(told.alive) < self._plan.threshold:
            raise SecureSumError(f"only {len(told.alive)} neighbours are alive, fewer than {self._plan.threshold}")
        held = {other: both for other, both in sorted(self._held.items()) if both is not None}
        shares = Shares(
            member=self._number,
            seeds={other: seed for other, (seed, _) in held.items() if other in told.alive},
            keys={other: secret for other, (_, secret) in held.items() if other in told.silent},
        )
        self._held.clear()
        return self._went_well("end", shares)

    @property
    def _mask_key(self) -> X25519PrivateKey:
        return mask_key_of(self._plan, self._number, self._mask_secret)

    def _begin(self, step: str) -> None:
        """Take a step at most once, and none after one that failed."""
        if self._next != step:
            raise SecureSumError(f"the server asked to {step}; this device is at: {self._next}")
        self._next = "end"

    def _went_well(self, following: str, message: M) -> M:
        self._next = following
        return message

    def _sealed(self, other: int, content: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        cipher = ChaCha20Poly1305(self._pair_key(other))
        return nonce + cipher.encrypt(nonce, content, self._addressed(self._number, other))

    def _opened(self, other: int, sealed: bytes) -> tuple[bytes, bytes] | None:
        cipher = ChaCha20Poly1305(self._pair_key(other))
        try:
            content = cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._addressed(other, self._number))
        except InvalidTag:
            return None
        return content[:SHARE_BYTES], content[SHARE_BYTES:]

    def _pair_key(self, other: int) -> bytes:
        try:
            return agreed_key(
                self._envelope_key,
                self._neighbours[other].envelope_key,
                purpose=b"envelope " + self._plan.context,
            )
        except ValueError:
            raise SecureSumError(f"member {other} has no usable key") from None

    def _addressed(self, sender: int, receiver: int) -> bytes:
        return f"{sender} to {receiver} ".encode() + self._plan.context


def mask_key_of(plan: RoundPlan, member: int, secret: bytes) -> X25519PrivateKey:
    """The key of a member's masks with others, from the 16 bytes that it shares."""
    return X25519PrivateKey.from_private_bytes(derived(secret, purpose=f"masks of {member} ".encode() + plan.context))


def own_mask_key(plan: RoundPlan, member: int, seed: bytes) -> bytes:
    """The key of a member's own mask."""
    return derived(seed, purpose=f"own {member} ".encode() + plan.context)


def pair_mask_key(plan: RoundPlan, own: X25519PrivateKey, number: int, other: Advertisement) -> bytes:
    """The key of the mask between two members, the same from both sides.

    Raises:
        SecureSumError: The other's key is not usable.
    """
    low, high = sorted((number, other.member))
    try:
        return agreed_key(own, other.mask_key, purpose=f"pair {low} {high} ".encode() + plan.context)
    except ValueError:
        raise SecureSumError(f"member {other.member} has no usable key") from None


def sign_of(member: int, other: int) -> int:
    """Which of a pair adds their mask, and which takes it away."""
    return 1 if member < other else -1


def seed_commitment(plan: RoundPlan, member: int, seed: bytes) -> bytes:
    """What a member says of its seed beforehand, so that wrong shares of it are found."""
    return hashlib.sha256(f"seed of {member} ".encode() + plan.context + seed).digest()


def share_commitment(plan: RoundPlan, kind: ShareKind, member: int, holder: int, share: bytes) -> bytes:
    """What a member says beforehand of a share that one neighbour holds."""
    return hashlib.sha256(f"share of {kind} from {member} to {holder} ".encode() + plan.context + share).digest()
