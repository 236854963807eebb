"""The server in a secure sum: passes envelopes on, adds masked vectors, and removes the masks from the sum alone."""

from __future__ import annotations

from itertools import combinations, islice
from typing import TYPE_CHECKING, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privacy.errors import SecureSumError
from privacy.secure_aggregation.graph import draw_graph
from privacy.secure_aggregation.masks import add_mask
from privacy.secure_aggregation.member import own_mask_key, pair_mask_key, seed_commitment, sign_of
from privacy.secure_aggregation.messages import (
    Advertisement,
    Delivered,
    Envelopes,
    MaskedVector,
    Neighbours,
    Shares,
    Survivors,
)
from privacy.secure_aggregation.shamir import restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from privacy.secure_aggregation.plan import RoundPlan

# How many choices of shares are tried before a member's secret counts as lost.
_MOST_TRIES: Final = 500


class Coordinator:
    """The server's side: give it what came in at each step, send what it answers. It never sees a single vector."""

    def __init__(self, plan: RoundPlan) -> None:
        self._plan = plan
        self._advertised: dict[int, Advertisement] = {}
        self._graph: dict[int, tuple[int, ...]] = {}
        self._shared: dict[int, Envelopes] = {}
        self._alive: set[int] = set()
        self._total = np.zeros(plan.length, dtype=np.uint32)
        self._seed_shares: dict[int, dict[int, bytes]] = {}
        self._key_shares: dict[int, dict[int, bytes]] = {}

    def introduce(self, advertisements: Iterable[Advertisement]) -> dict[int, Neighbours]:
        """Draw who knows whom, and tell each member its neighbours' keys.

        Raises:
            SecureSumError: A member or a key twice, or too few members.
        """
        self._advertised = {one.member: one for one in advertisements}
        keys = [key for one in self._advertised.values() for key in (one.envelope_key, one.mask_key)]
        if len(set(keys)) != len(keys):
            raise SecureSumError("two members advertised the same key")
        if len(self._advertised) <= self._plan.threshold:
            raise SecureSumError(f"{len(self._advertised)} members cannot be {self._plan.threshold} neighbours each")
        self._graph = draw_graph(sorted(self._advertised), neighbours=self._plan.neighbours)
        return {
            member: Neighbours(of=member, neighbours=tuple(self._advertised[other] for other in others))
            for member, others in self._graph.items()
        }

    def deliver(self, sent: Iterable[Envelopes]) -> dict[int, Delivered]:
        """Pass on envelopes among those who sent theirs; who does not address all neighbours is left out."""
        self._shared = {
            one.member: one
            for one in sent
            if one.member in self._graph and set(one.envelopes) == set(self._graph[one.member])
        }
        return {
            member: Delivered(
                to=member,
                envelopes={
                    other: self._shared[other].envelopes[member]
                    for other in self._graph[member]
                    if other in self._shared
                },
            )
            for member in self._shared
        }

    def add(self, masked: MaskedVector) -> bool:
        """Add one masked vector to the sum; False: it is refused (twice, a stranger, or another shape)."""
        values, member = masked.values, masked.member
        if member not in self._shared or member in self._alive:
            return False
        if values.shape != (self._plan.length,) or values.dtype != np.uint32:
            return False
        self._total += values
        self._alive.add(member)
        return True

    @property
    def alive(self) -> frozenset[int]:
        """Whose vectors are in the sum."""
        return frozenset(self._alive)

    def ask(self) -> dict[int, Survivors]:
        """Tell each member in the sum which of its neighbours are in it too."""
        return {
            member: Survivors(
                to=member,
                alive=frozenset(other for other in self._graph[member] if other in self._alive),
                silent=frozenset(o for o in self._graph[member] if o in self._shared and o not in self._alive),
            )
            for member in sorted(self._alive)
        }

    def hear(self, shares: Shares) -> bool:
        """Take one member's shares; False: it is refused (twice, a stranger, or of others than it was asked for)."""
        member = shares.member
        if member not in self._alive or any(member in held for held in self._seed_shares.values()):
            return False
        near = set(self._graph[member])
        alive, silent = near & self._alive, (near & set(self._shared)) - self._alive
        if set(shares.seeds) != alive or set(shares.keys) != silent:
            return False
        for other, share in shares.seeds.items():
            self._seed_shares.setdefault(other, {})[member] = share
        for other, share in shares.keys.items():
            self._key_shares.setdefault(other, {})[member] = share
        return True

    def total(self) -> NDArray[np.uint32]:
        """The sum of the vectors of those in `alive`, modulo 2^32.

        Raises:
            SecureSumError: Too few true shares of somebody's secret came in; the sum stays masked for ever.
        """
        total = self._total.copy()
        for member in sorted(self._alive):
            seed = self._restored(self._seed_shares.get(member, {}), self._is_seed_of(member), member)
            add_mask(total, own_mask_key(self._plan, member, seed), sign=-1)
        for member in sorted(set(self._shared) - self._alive):
            near = [other for other in self._graph[member] if other in self._alive]
            if not near:
                continue
            raw = self._restored(self._key_shares.get(member, {}), self._is_key_of(member), member)
            private = X25519PrivateKey.from_private_bytes(raw)
            for other in near:
                key = pair_mask_key(self._plan, private, member, self._advertised[other])
                add_mask(total, key, sign=-sign_of(other, member))
        return total

    def _restored(self, shares: dict[int, bytes], is_right: Callable[[bytes], bool], member: int) -> bytes:
        """A secret from any true shares of it: some may be lies."""
        holders = sorted(shares)
        for chosen in islice(combinations(holders, self._plan.threshold), _MOST_TRIES):
            secret = restore({holder: shares[holder] for holder in chosen})
            if secret is not None and is_right(secret):
                return secret
        raise SecureSumError(
            f"{len(holders)} shares of a secret of member {member} came in, {self._plan.threshold} true ones are "
            "needed; the round is void and nothing was learnt"
        )

    def _is_seed_of(self, member: int) -> Callable[[bytes], bool]:
        stated = self._shared[member].seed_commitment
        return lambda seed: seed_commitment(self._plan, member, seed) == stated

    def _is_key_of(self, member: int) -> Callable[[bytes], bool]:
        stated = self._advertised[member].mask_key
        return lambda raw: X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw() == stated
