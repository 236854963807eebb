"""Secure sums: exact whoever falls silent when, uniform to look at, and closed to whoever does not keep to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from privacy.errors import SecureSumError
from privacy.secure_aggregation import Coordinator, Member, RoundPlan, neighbours_needed
from privacy.secure_aggregation.graph import draw_graph
from privacy.secure_aggregation.masks import add_mask
from privacy.secure_aggregation.messages import Delivered, Envelopes, MaskedVector, Neighbours, Shares, Survivors
from privacy.secure_aggregation.shamir import PRIME, SHARE_BYTES, restore, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PLAN = RoundPlan(run_id="run", server_round=3, length=50, neighbours=4, threshold=3)
PHASES = ("after advertising", "after sharing", "after masking")


def vectors(count: int, length: int = PLAN.length) -> dict[int, np.ndarray]:
    random = np.random.default_rng(count)
    return {n: random.integers(0, 1 << 32, size=length, dtype=np.uint32) for n in range(1, count + 1)}


class Round:
    """A round among members in this process, some of whom fall silent, and what may be changed on the way."""

    def __init__(self, inputs: dict[int, np.ndarray], plan: RoundPlan = PLAN) -> None:
        self.inputs, self.plan = inputs, plan
        self.members = {number: Member(plan, number) for number in inputs}
        self.coordinator = Coordinator(plan)
        self.masked: dict[int, np.ndarray] = {}

    def run(
        self,
        silent: dict[int, str] | None = None,
        *,
        change_shares: Callable[[Shares], Shares] = lambda shares: shares,
    ) -> np.ndarray:
        gone = silent or {}
        introduced = self.coordinator.introduce(member.advertise() for member in self.members.values())
        there = [n for n in self.members if gone.get(n) != PHASES[0]]
        delivered = self.coordinator.deliver(self.members[n].share(introduced[n]) for n in there)
        there = [n for n in delivered if gone.get(n) != PHASES[1]]
        for number in there:
            try:
                masked = self.members[number].mask(delivered[number], self.inputs[number])
            except SecureSumError:
                continue  # too few neighbours are left for this one
            self.masked[number] = masked.values
            assert self.coordinator.add(masked)
        for number, told in self.coordinator.ask().items():
            if gone.get(number) == PHASES[2]:
                continue
            try:
                shares = self.members[number].reveal(told)
            except SecureSumError:
                continue
            assert self.coordinator.hear(change_shares(shares))
        return self.coordinator.total()

    def expected(self) -> np.ndarray:
        total = np.zeros(self.plan.length, dtype=np.uint32)
        for number in self.coordinator.alive:
            total += self.inputs[number]
        return total


@pytest.mark.parametrize("phase", PHASES)
def test_the_sum_is_exact_whenever_somebody_falls_silent(phase: str) -> None:
    round_ = Round(vectors(9))
    found = round_.run({4: phase})
    assert (found == round_.expected()).all()
    assert (4 in round_.coordinator.alive) == (phase == PHASES[2])


def test_the_sum_is_exact_when_nobody_does() -> None:
    round_ = Round(vectors(9))
    assert (round_.run() == round_.expected()).all()
    assert round_.coordinator.alive == set(range(1, 10))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_pattern_of_silence_gives_the_exact_sum_or_none(data: st.DataObject) -> None:
    count = data.draw(st.integers(4, 14))
    neighbours = data.draw(st.sampled_from([2, 4, 6, 8]))
    threshold = data.draw(st.integers(neighbours // 2 + 1, neighbours))
    plan = RoundPlan(run_id="r", server_round=0, length=5, neighbours=neighbours, threshold=max(2, threshold))
    silent = data.draw(st.dictionaries(st.integers(1, count), st.sampled_from(PHASES), max_size=count))
    round_ = Round(vectors(count, 5), plan)
    try:
        found = round_.run(silent)
    except SecureSumError:
        return  # void: too few are left, and the masks stay on
    assert (found == round_.expected()).all()


@pytest.mark.slow
def test_what_one_member_sends_is_uniform_whatever_it_sums() -> None:
    """Chi-square over the bytes of 400 rounds with the same vector of zeros."""
    zeros = {number: np.zeros(PLAN.length, dtype=np.uint32) for number in range(1, 7)}
    seen = []
    for _ in range(400):
        round_ = Round(zeros)
        round_.run()
        seen.append(round_.masked[1].view(np.uint8))
    counts = np.bincount(np.concatenate(seen), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    # No value of it goes with its place, nor with what the same member sent in another round.
    first = np.stack(seen).astype(np.float64)
    assert abs(np.corrcoef(first[:200].ravel(), first[200:].ravel())[0, 1]) < 0.05


def test_no_two_members_masks_are_alike() -> None:
    round_ = Round({n: np.zeros(PLAN.length, dtype=np.uint32) for n in range(1, 7)})
    round_.run()
    assert len({values.tobytes() for values in round_.masked.values()}) == 6


def lying(about: str, member: int, liars: Iterable[int]) -> Callable[[Shares], Shares]:
    def change(shares: Shares) -> Shares:
        held = getattr(shares, about)
        if shares.member not in liars or member not in held:
            return shares
        return shares.model_copy(update={about: held | {member: bytes(SHARE_BYTES)}})

    return change


@pytest.mark.parametrize("about", ["seeds", "keys"])
def test_one_wrong_share_does_no_harm_and_too_many_void_the_round(about: str) -> None:
    silent = {1: PHASES[1]} if about == "keys" else {}
    plan = RoundPlan(run_id="r", server_round=0, length=4, neighbours=6, threshold=4)
    round_ = Round(vectors(7, 4), plan)
    assert (round_.run(silent, change_shares=lying(about, 1, [2])) == round_.expected()).all()
    with pytest.raises(SecureSumError, match="void and nothing was learnt"):
        Round(vectors(7, 4), plan).run(silent, change_shares=lying(about, 1, [2, 3, 4]))


class Halfway:
    """Three members who have shared, for steps that must be refused."""

    def __init__(self, server_round: int = 3) -> None:
        self.plan = RoundPlan(run_id="run", server_round=server_round, length=50, neighbours=4, threshold=3)
        self.members = {number: Member(self.plan, number) for number in range(1, 5)}
        self.coordinator = Coordinator(self.plan)
        told = self.coordinator.introduce(member.advertise() for member in self.members.values())
        self.sent: list[Envelopes] = [self.members[n].share(told[n]) for n in self.members]
        self.delivered = self.coordinator.deliver(self.sent)
        self.vector = np.zeros(50, dtype=np.uint32)


def test_a_share_of_another_round_or_for_somebody_else_is_refused() -> None:
    now, before = Halfway(), Halfway(server_round=2)
    replayed = Delivered(to=1, envelopes=before.delivered[1].envelopes)
    with pytest.raises(SecureSumError, match="changed, or is not for this round"):
        now.members[1].mask(replayed, now.vector)
    swapped = Delivered(to=2, envelopes=now.delivered[2].envelopes | {3: now.delivered[4].envelopes[3]})
    with pytest.raises(SecureSumError, match="envelope of member 3"):
        now.members[2].mask(swapped, now.vector)
    changed = bytearray(now.delivered[3].envelopes[1])
    changed[20] ^= 1
    told = Delivered(to=3, envelopes=now.delivered[3].envelopes | {1: bytes(changed)})
    with pytest.raises(SecureSumError, match="envelope of member 1"):
        now.members[3].mask(told, now.vector)


def test_a_member_says_nothing_more_after_a_step_that_was_refused() -> None:
    now = Halfway()
    with pytest.raises(SecureSumError):
        now.members[1].mask(Delivered(to=2, envelopes={}), now.vector)
    with pytest.raises(SecureSumError, match="this device is at: end"):
        now.members[1].mask(now.delivered[1], now.vector)


def test_a_member_never_tells_both_kinds_of_one_neighbour() -> None:
    now = Halfway()
    now.members[1].mask(now.delivered[1], now.vector)
    both = Survivors(to=1, alive=frozenset({2, 3, 4}), silent=frozenset({4}))
    with pytest.raises(SecureSumError, match="nothing is revealed"):
        now.members[1].reveal(both)
    now.members[2].mask(now.delivered[2], now.vector)
    now.members[2].reveal(Survivors(to=2, alive=frozenset({1, 3, 4}), silent=frozenset()))
    with pytest.raises(SecureSumError, match="this device is at: end"):
        now.members[2].reveal(Survivors(to=2, alive=frozenset({1, 3}), silent=frozenset({4})))


@pytest.mark.parametrize(
    ("alive", "silent"),
    [({2, 3}, set()), ({2, 3, 4, 9}, set()), ({2}, {3, 4}), (set(), {2, 3, 4})],
    ids=["one left out", "a stranger", "too few", "nobody"],
)
def test_lists_that_do_not_fit_reveal_nothing(alive: set[int], silent: set[int]) -> None:
    now = Halfway()
    now.members[1].mask(now.delivered[1], now.vector)
    with pytest.raises(SecureSumError):
        now.members[1].reveal(Survivors(to=1, alive=frozenset(alive), silent=frozenset(silent)))


def test_a_server_that_invents_or_repeats_neighbours_is_refused() -> None:
    plan = RoundPlan(run_id="run", server_round=3, length=5, neighbours=3, threshold=2)
    others = [Member(plan, number).advertise() for number in (2, 3, 4)]
    twice = (others[0], others[0], others[1])
    as_one = (others[0], others[1].model_copy(update={"mask_key": others[0].mask_key}), others[2])
    zero = others[0].model_copy(update={"envelope_key": bytes(32)})
    for neighbours in (twice, as_one, (others[0],), (zero, *others[1:])):
        member = Member(plan, 1)
        member.advertise()
        with pytest.raises(SecureSumError):
            member.share(Neighbours(of=1, neighbours=neighbours))


def test_the_coordinator_refuses_what_does_not_belong() -> None:
    now = Halfway()
    masked = now.members[1].mask(now.delivered[1], now.vector)
    assert now.coordinator.add(masked)
    assert not now.coordinator.add(masked)
    assert not now.coordinator.add(MaskedVector(99, now.vector))
    assert not now.coordinator.add(MaskedVector(2, now.vector[:3]))
    assert not now.coordinator.add(MaskedVector(2, now.vector.astype(np.int64)))
    assert not now.coordinator.hear(Shares(member=2, seeds={}, keys={}))
    incomplete = now.sent[0].model_copy(update={"envelopes": {}})
    assert now.coordinator.deliver([incomplete]) == {}


def test_a_vector_of_another_length_never_leaves() -> None:
    now = Halfway()
    with pytest.raises(ValueError, match="50 numbers"):
        now.members[1].mask(now.delivered[1], now.vector[:10])


@pytest.mark.parametrize(("neighbours", "threshold"), [(4, 2), (4, 5), (6, 3)])
def test_thresholds_that_would_let_a_lying_server_learn_both_kinds_are_refused(neighbours: int, threshold: int) -> None:
    with pytest.raises(ValidationError, match="half"):
        RoundPlan(run_id="r", server_round=0, length=1, neighbours=neighbours, threshold=threshold)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 8), st.integers(0, 6), st.randoms())
def test_as_many_shares_as_the_threshold_restore_and_no_fewer(secret, threshold, more, random) -> None:
    holders = list(range(1, threshold + more + 1))
    shares = split(secret, holders, threshold=threshold)
    some = dict(random.sample(sorted(shares.items()), threshold))
    assert restore(some) == secret
    if threshold > 1:
        assert restore(dict(list(some.items())[1:])) != secret


def test_shares_outside_the_field_are_no_shares() -> None:
    assert restore({1: bytes(3)}) is None
    assert restore({1: PRIME.to_bytes(SHARE_BYTES, "big")}) is None
    for holders in ([0, 1], [1, 1], []):
        with pytest.raises(ValueError, match="share"):
            split(bytes(32), holders, threshold=2)


def test_masks_come_off_again_and_their_stream_is_the_ciphers() -> None:
    vector = np.arange(200_000, dtype=np.uint32)
    masked = vector.copy()
    add_mask(masked, b"k" * 32, sign=1)
    assert (masked != vector).mean() > 0.99
    add_mask(masked, b"k" * 32, sign=-1)
    assert (masked == vector).all()


@pytest.mark.parametrize(("count", "neighbours"), [(3, 4), (5, 4), (6, 5), (20, 6), (20, 19), (101, 10)])
def test_every_member_has_as_many_neighbours_and_all_are_connected(count: int, neighbours: int) -> None:
    graph = draw_graph(range(1, count + 1), neighbours=neighbours)
    assert {len(near) for near in graph.values()} == {min(neighbours, count - 1)}
    assert all(member in graph[other] for member, near in graph.items() for other in near)
    reached, frontier = {1}, [1]
    while frontier:
        frontier = [other for member in frontier for other in graph[member] if other not in reached]
        reached.update(frontier)
    assert len(reached) == count


def test_neighbours_grow_with_the_logarithm_of_the_cohort() -> None:
    sizes = [neighbours_needed(count, dropouts=0.05, colluding=0.05)[0] for count in (100, 1000, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[2] < 1.5 * sizes[1]
    neighbours, threshold = neighbours_needed(1000, dropouts=0.3, colluding=0.0)
    assert neighbours // 2 < threshold < neighbours
    with pytest.raises(ValueError, match="ask more devices"):
        neighbours_needed(20, dropouts=0.5, colluding=0.3)
