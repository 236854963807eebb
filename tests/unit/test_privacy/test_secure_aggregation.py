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
from privacy.secure_aggregation.messages import (
    Advertisement,
    Delivered,
    Envelopes,
    MaskedVector,
    Neighbours,
    Shares,
    Survivors,
)
from privacy.secure_aggregation.shamir import SECRET_BYTES, SHARE_BYTES, restore, split

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
        change_keys: Callable[[Advertisement], Advertisement] = lambda keys: keys,
        change_envelopes: Callable[[Envelopes], Envelopes] = lambda envelopes: envelopes,
        change_shares: Callable[[Shares], Shares] = lambda shares: shares,
    ) -> np.ndarray:
        gone = silent or {}
        introduced = self.coordinator.introduce(change_keys(member.advertise()) for member in self.members.values())
        there = [n for n in introduced if gone.get(n) != PHASES[0]]
        delivered = self.coordinator.deliver(change_envelopes(self.members[n].share(introduced[n])) for n in there)
        there = [n for n in delivered if gone.get(n) != PHASES[1]]
        for number in there:
            try:
                self.members[number].open(delivered[number])
                masked = self.members[number].mask(self.inputs[number])
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


def test_what_one_member_sends_is_uniform_whatever_it_sums() -> None:
    """Chi-square over the bytes of 100 rounds with the same vector of zeros."""
    zeros = {number: np.zeros(PLAN.length, dtype=np.uint32) for number in range(1, 7)}
    seen = []
    for _ in range(100):
        round_ = Round(zeros)
        round_.run()
        seen.append(round_.masked[1].view(np.uint8))
    counts = np.bincount(np.concatenate(seen), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-4
    # No value of it goes with its place, nor with what the same member sent in another round.
    first = np.stack(seen).astype(np.float64)
    assert abs(np.corrcoef(first[:50].ravel(), first[50:].ravel())[0, 1]) < 0.05


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


BIG = RoundPlan(run_id="r", server_round=0, length=4, neighbours=28, threshold=19)


def big_round() -> Round:
    """Thirty-one members: far more choices of shares than anybody could try."""
    return Round(vectors(31, 4), BIG)


@pytest.mark.parametrize("about", ["seeds", "keys"])
def test_whoever_lies_about_every_share_voids_nothing(about: str) -> None:
    def lie(shares: Shares) -> Shares:
        lies = {about: dict.fromkeys(getattr(shares, about), bytes(SHARE_BYTES))}
        return shares.model_copy(update=lies) if shares.member in {1, 2} else shares

    round_ = big_round()
    assert (round_.run({31: PHASES[1]}, change_shares=lie) == round_.expected()).all()
    lied = {holder for holders in round_.coordinator.wrong_shares.values() for holder in holders}
    assert lied == {1, 2}


def spoilt_keys(kind: str) -> Callable[[Advertisement], Advertisement]:
    def change(keys: Advertisement) -> Advertisement:
        if keys.member != 7:
            return keys
        return keys.model_copy(
            update={
                "twice": {"mask_key": keys.envelope_key},
                "zero envelope key": {"envelope_key": bytes(32)},
                "zero mask key": {"mask_key": bytes(32)},
            }[kind]
        )

    return change


@pytest.mark.parametrize("kind", ["twice", "zero envelope key", "zero mask key"])
def test_keys_that_nobody_can_use_leave_out_their_member_alone(kind: str) -> None:
    round_ = big_round()
    assert (round_.run(change_keys=spoilt_keys(kind)) == round_.expected()).all()
    assert round_.coordinator.alive == set(range(1, 32)) - {7}
    assert set(round_.coordinator.left_out) == {7}


def spoilt_envelopes(to: int) -> Callable[[Envelopes], Envelopes]:
    """Member 7's envelopes to so many of its neighbours hold noise."""

    def change(sent: Envelopes) -> Envelopes:
        if sent.member != 7:
            return sent
        spoilt = {other: bytes(len(sent.envelopes[other])) for other in sorted(sent.envelopes)[:to]}
        return sent.model_copy(update={"envelopes": sent.envelopes | spoilt})

    return change


@pytest.mark.parametrize("is_silent", [False, True])
def test_envelopes_that_cannot_be_opened_make_nobody_else_decline(is_silent: bool) -> None:
    round_ = big_round()
    found = round_.run({7: PHASES[1]} if is_silent else {}, change_envelopes=spoilt_envelopes(9))
    assert (found == round_.expected()).all()
    assert len(round_.coordinator.alive) == 31 - is_silent


@pytest.mark.parametrize("is_silent", [False, True])
def test_who_gave_out_nothing_that_restores_its_secret_is_named(is_silent: bool) -> None:
    """It voids one round: what it masked cannot be taken out again. The next goes on without it."""
    round_ = big_round()
    with pytest.raises(SecureSumError, match="member 7 came in"):
        round_.run({7: PHASES[1]} if is_silent else {}, change_envelopes=spoilt_envelopes(28))
    assert round_.coordinator.culprits == {7}
    assert len(round_.coordinator.alive) == 31 - is_silent


def test_who_commits_to_another_secret_than_it_shares_is_named() -> None:
    def change(sent: Envelopes) -> Envelopes:
        return sent.model_copy(update={"seed_commitment": bytes(32)}) if sent.member == 7 else sent

    round_ = big_round()
    with pytest.raises(SecureSumError, match="member 7"):
        round_.run(change_envelopes=change)
    assert round_.coordinator.culprits == {7}


def test_the_liars_are_named_and_not_whom_they_lie_about() -> None:
    plan = RoundPlan(run_id="r", server_round=0, length=4, neighbours=10, threshold=7)
    liars = {2, 3, 4, 5}
    round_ = Round(vectors(11, 4), plan)
    with pytest.raises(SecureSumError, match="void and nothing was learnt"):
        round_.run(change_shares=lying("seeds", 1, liars))
    assert round_.coordinator.culprits == liars


def test_silence_is_nobodys_fault() -> None:
    round_ = big_round()
    with pytest.raises(SecureSumError):
        round_.run(dict.fromkeys(range(1, 16), PHASES[2]))
    assert round_.coordinator.culprits == frozenset()


class Halfway:
    """Three members who have shared, for steps that must be refused."""

    def __init__(self, server_round: int = 3, neighbours: int = 4, threshold: int = 3) -> None:
        self.plan = RoundPlan(
            run_id="run", server_round=server_round, length=50, neighbours=neighbours, threshold=threshold
        )
        self.members = {number: Member(self.plan, number) for number in range(1, 5)}
        self.coordinator = Coordinator(self.plan)
        told = self.coordinator.introduce(member.advertise() for member in self.members.values())
        self.sent: list[Envelopes] = [self.members[n].share(told[n]) for n in self.members]
        self.delivered = self.coordinator.deliver(self.sent)
        self.vector = np.zeros(50, dtype=np.uint32)

    def masked(self, number: int, *, values: int = 50) -> MaskedVector:
        """What a member sends, after it opened what was delivered to it."""
        self.members[number].open(self.delivered[number])
        return self.members[number].mask(self.vector[:values])


def test_a_share_of_another_round_or_for_somebody_else_is_refused() -> None:
    now, before = Halfway(neighbours=3, threshold=2), Halfway(2, neighbours=3, threshold=2)
    replayed = now.delivered[1].envelopes | {3: before.delivered[1].envelopes[3]}
    swapped = now.delivered[1].envelopes | {3: now.delivered[4].envelopes[3]}
    changed = bytearray(now.delivered[1].envelopes[3])
    changed[20] ^= 1
    for envelopes in (replayed, swapped, now.delivered[1].envelopes | {3: bytes(changed)}):
        member = Member.from_bytes(now.members[1].to_bytes())
        member.open(Delivered(to=1, envelopes=envelopes))
        assert member.unopened == {3}
        kept = Member.from_bytes(member.to_bytes())
        assert kept.unopened == {3}
        kept.mask(now.vector)
        told = kept.reveal(Survivors(to=1, alive=frozenset({2, 3}), silent=frozenset({4})))
        assert (set(told.seeds), set(told.keys)) == ({2}, {4})
    with pytest.raises(SecureSumError, match="only 0 envelopes can be opened"):
        now.members[2].open(Delivered(to=2, envelopes=before.delivered[2].envelopes))


def test_a_share_that_was_replayed_or_is_somebody_elses_is_left_out() -> None:
    now, before = Halfway(), Halfway(server_round=2)
    shares = {}
    for half in (before, now):
        for number, member in half.members.items():
            member.open(half.delivered[number])
            assert half.coordinator.add(member.mask(half.vector))
        told = half.coordinator.ask()
        shares[half.plan.server_round] = {n: half.members[n].reveal(told[n]) for n in half.members}
    honest, old = shares[3], shares[2]
    assert now.coordinator.hear(old[1])
    swapped = honest[2].model_copy(update={"seeds": honest[2].seeds | {3: honest[4].seeds[3]}})
    assert now.coordinator.hear(swapped)
    assert now.coordinator.hear(honest[3])
    wrong = now.coordinator.wrong_shares
    assert wrong == {2: {1}, 3: {1, 2}, 4: {1}}


def test_a_member_says_nothing_more_after_a_step_that_was_refused() -> None:
    now = Halfway()
    with pytest.raises(SecureSumError):
        now.members[1].open(Delivered(to=2, envelopes={}))
    with pytest.raises(SecureSumError, match="this device is at: end"):
        now.members[1].open(now.delivered[1])
    with pytest.raises(SecureSumError, match="this device is at: end"):
        now.members[1].mask(now.vector)


def test_a_member_never_tells_both_kinds_of_one_neighbour() -> None:
    now = Halfway()
    now.masked(1)
    both = Survivors(to=1, alive=frozenset({2, 3, 4}), silent=frozenset({4}))
    with pytest.raises(SecureSumError, match="nothing is revealed"):
        now.members[1].reveal(both)
    now.masked(2)
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
    now.masked(1)
    with pytest.raises(SecureSumError):
        now.members[1].reveal(Survivors(to=1, alive=frozenset(alive), silent=frozenset(silent)))


def test_a_server_that_invents_or_repeats_neighbours_is_refused() -> None:
    plan = RoundPlan(run_id="run", server_round=3, length=5, neighbours=3, threshold=2)
    others = [Member(plan, number).advertise() for number in (2, 3, 4)]
    twice = (others[0], others[0], others[1])
    as_one = (others[0], others[1].model_copy(update={"mask_key": others[0].mask_key}), others[2])
    zero = others[0].model_copy(update={"envelope_key": bytes(32)})
    no_mask = others[0].model_copy(update={"mask_key": bytes(32)})
    for neighbours in (twice, as_one, (others[0],), (zero, *others[1:]), (no_mask, *others[1:])):
        member = Member(plan, 1)
        member.advertise()
        with pytest.raises(SecureSumError):
            member.share(Neighbours(of=1, neighbours=neighbours))


def test_the_coordinator_refuses_what_does_not_belong() -> None:
    now = Halfway()
    masked = now.masked(1)
    assert now.coordinator.add(masked)
    assert not now.coordinator.add(masked)
    assert not now.coordinator.add(MaskedVector(99, now.vector))
    assert not now.coordinator.add(MaskedVector(2, now.vector[:3]))
    assert not now.coordinator.add(MaskedVector(2, now.vector.astype(np.int64)))
    assert not now.coordinator.hear(Shares(member=2, seeds={}, keys={}))
    incomplete = now.sent[0].model_copy(update={"envelopes": {}})
    assert Coordinator(now.plan).deliver([incomplete]) == {}
    assert not now.coordinator.hear(Shares(member=1, seeds={99: bytes(16)}, keys={}))


def test_a_vector_of_another_length_never_leaves() -> None:
    now = Halfway()
    with pytest.raises(ValueError, match="50 numbers"):
        now.masked(1, values=10)


@pytest.mark.parametrize(("neighbours", "threshold"), [(4, 2), (4, 5), (6, 3)])
def test_thresholds_that_would_let_a_lying_server_learn_both_kinds_are_refused(neighbours: int, threshold: int) -> None:
    with pytest.raises(ValidationError, match="half"):
        RoundPlan(run_id="r", server_round=0, length=1, neighbours=neighbours, threshold=threshold)


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.integers(1, 8), st.integers(0, 6), st.randoms())
def test_as_many_shares_as_the_threshold_restore_and_no_fewer(secret, threshold, more, random) -> None:
    holders = random.sample(range(1, 1000), threshold + more)
    shares = split(secret, holders, threshold=threshold)
    some = dict(random.sample(sorted(shares.items()), threshold))
    assert restore(some, holders) == secret
    if threshold > 1:
        assert restore(dict(list(some.items())[1:]), holders) != secret


def test_shares_that_cannot_be_made_are_refused() -> None:
    for secret, holders in ((bytes(SECRET_BYTES), [1, 1]), (bytes(SECRET_BYTES), []), (bytes(3), [1, 2, 3])):
        with pytest.raises(ValueError, match="share"):
            split(secret, holders, threshold=2)


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
