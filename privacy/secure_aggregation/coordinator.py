"""The server in a secure sum: passes envelopes on, adds masked vectors, and removes the masks from the sum alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import SecureSumError
from privacy.secure_aggregation.graph import draw_graph
from privacy.secure_aggregation.masks import add_mask, is_usable_key
from privacy.secure_aggregation.member import (
    mask_key_of,
    own_mask_key,
    pair_mask_key,
    seed_commitment,
    share_commitment,
    sign_of,
)
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

    from privacy.secure_aggregation.member import ShareKind
    from privacy.secure_aggregation.plan import RoundPlan


class Coordinator:
    """The server's side: give it what came in at each step, send what it answers. It never sees a single vector."""

    def __init__(self, plan: RoundPlan) -> None:
        self._plan = plan
        self._advertised: dict[int, Advertisement] = {}
        self._graph: dict[int, tuple[int, ...]] = {}
        self._shared: dict[int, Envelopes] = {}
        self._alive: set[int] = set()
        self._total = np.zeros(plan.length, dtype=np.uint32)
        self._heard: set[int] = set()
        # By whose secret it is of, then by who held it; of the seed where that member is alive, else of the key.
        self._shares: dict[int, dict[int, bytes]] = {}
        self._lost: list[int] = []
        self.left_out: dict[int, str] = {}

    def introduce(self, advertisements: Iterable[Advertisement]) -> dict[int, Neighbours]:
        """Draw who knows whom, and tell each member its neighbours' keys.

        Members whose keys are not usable, or not theirs alone, are left out (`left_out` says why).

        Raises:
            SecureSumError: Too few members.
        """
        told = {one.member: one for one in advertisements}
        counts = Counter(key for one in told.values() for key in (one.envelope_key, one.mask_key))
        for member, one in told.items():
            keys = (one.envelope_key, one.mask_key)
            if any(counts[key] > 1 for key in keys):
                self.left_out[member] = "a key that was advertised twice"
            elif not all(map(is_usable_key, keys)):
                self.left_out[member] = "a key that makes every secret the same"
        self._advertised = {member: one for member, one in told.items() if member not in self.left_out}
        if len(self._advertised) <= self._plan.threshold:
            raise SecureSumError(f"{len(self._advertised)} members cannot be {self._plan.threshold} neighbours each")
        self._graph = draw_graph(sorted(self._advertised), neighbours=self._plan.neighbours)
        return {
            member: Neighbours(of=member, neighbours=tuple(self._advertised[other] for other in others))
            for member, others in self._graph.items()
        }

    def deliver(self, sent: Iterable[Envelopes]) -> dict[int, Delivered]:
        """Pass on envelopes among those who sent theirs; who does not address all neighbours is left out."""
        for one in sent:
            near = set(self._graph.get(one.member, ()))
            if near and set(one.envelopes) == near and set(one.share_commitments) == near:
                self._shared[one.member] = one
            else:
                self.left_out[one.member] = "envelopes for others than its neighbours"
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
        """Take one member's shares; False: it is refused (twice, a stranger, or of others than it was asked for).

        A share that is not the one that was committed to is left out; the others of the same member are kept.
        """
        member = shares.member
        if member not in self._alive or member in self._heard:
            return False
        near = set(self._graph[member])
        if (
            not set(shares.seeds) <= near & self._alive
            or not set(shares.keys) <= (near & set(self._shared)) - self._alive
        ):
            return False
        self._heard.add(member)
        # Each dealer committed to both of a holder's shares, one after the other.
        for place, (kind, held) in enumerate(_held_in(shares)):
            for dealer, share in held.items():
                stated = self._shared[dealer].share_commitments[member][32 * place : 32 * (place + 1)]
                if share_commitment(self._plan, kind, dealer, member, share) == stated:
                    self._shares.setdefault(dealer, {})[member] = share
        return True

    @property
    def wrong_shares(self) -> dict[int, frozenset[int]]:
        """Of each member whose neighbours answered, those that gave no true share of its secret."""
        asked = {dealer: self._heard & set(self._graph[dealer]) for dealer in self._shared}
        found = {dealer: frozenset(near - set(self._shares.get(dealer, ()))) for dealer, near in asked.items()}
        return {dealer: holders for dealer, holders in found.items() if holders}

    @property
    def culprits(self) -> frozenset[int]:
        """After `total` failed: who gave out, or gave back, what no secret can be restored from.

        A member is at fault when its shares are those it committed to and make another secret, or when most of its
        neighbours can say nothing of it; else those neighbours are. Nobody is where too few answered: that is silence.
        """
        found: set[int] = set()
        for dealer in self._lost:
            answered, true = self._heard & set(self._graph[dealer]), self._shares.get(dealer, {})
            if len(true) >= self._plan.threshold:
                found.add(dealer)
            elif len(answered) >= self._plan.threshold:
                found |= {dealer} if 2 * len(true) <= len(answered) else answered - set(true)
        return frozenset(found)

    def total(self) -> NDArray[np.uint32]:
        """The sum of the vectors of those in `alive`, modulo 2^32.

        Raises:
            SecureSumError: Too few true shares of somebody's secret came in; the sum stays masked for ever.
        """
        silent = {
            member: near
            for member in sorted(set(self._shared) - self._alive)
            if (near := [other for other in self._graph[member] if other in self._alive])
        }
        seeds = {member: self._restored(member, self._is_seed_of(member)) for member in sorted(self._alive)}
        secrets = {member: self._restored(member, self._is_key_of(member)) for member in silent}
        self._lost = sorted(member for member, secret in (seeds | secrets).items() if secret is None)
        if self._lost:
            one = self._lost[0]
            raise SecureSumError(
                f"{len(self._shares.get(one, {}))} true shares of a secret of member {one} came in, "
                f"{self._plan.threshold} of one secret are needed; the round is void and nothing was learnt"
            )
        total = self._total.copy()
        for member, seed in seeds.items():
            add_mask(total, own_mask_key(self._plan, member, seed or b""), sign=-1)
        for member, near in silent.items():
            private = mask_key_of(self._plan, member, secrets[member] or b"")
            for other in near:
                key = pair_mask_key(self._plan, private, member, self._advertised[other])
                add_mask(total, key, sign=-sign_of(other, member))
        return total

    def _restored(self, member: int, is_right: Callable[[bytes], bool]) -> bytes | None:
        """A member's secret, from any of the shares that it committed to; None: too few, or they make another one."""
        true = self._shares.get(member, {})
        if len(true) < self._plan.threshold:
            return None
        chosen = dict(sorted(true.items())[: self._plan.threshold])
        secret = restore(chosen, self._graph[member])
        return secret if is_right(secret) else None

    def _is_seed_of(self, member: int) -> Callable[[bytes], bool]:
        stated = self._shared[member].seed_commitment
        return lambda seed: seed_commitment(self._plan, member, seed) == stated

    def _is_key_of(self, member: int) -> Callable[[bytes], bool]:
        stated = self._advertised[member].mask_key
        return lambda raw: mask_key_of(self._plan, member, raw).public_key().public_bytes_raw() == stated


def _held_in(shares: Shares) -> tuple[tuple[ShareKind, dict[int, bytes]], ...]:
    return (("seed", shares.seeds), ("key", shares.keys))
