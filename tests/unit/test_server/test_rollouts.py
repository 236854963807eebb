"""The rules of rollouts: pure, so every state can be tried."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.errors import ConflictError, InvalidRecordError
from server.rollouts import (
    ACTIONS,
    Counts,
    DeviceFacts,
    Health,
    Measured,
    QualityLimit,
    Release,
    Rollout,
    RolloutPlan,
    advance,
    apply,
    change,
    decide,
    parse_plan,
    position_of,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def make(state: str = "running", *, version: int = 2, rollout_id: int = 1, phase: int = 0, **plan: object) -> Rollout:
    return Rollout(
        rollout_id=rollout_id,
        model="tiny",
        version=version,
        plan=parse_plan(**{"phases": (10.0, 50.0, 100.0), "min_reports": 10, "soak_hours": 2.0, **plan}),
        state=state,
        phase=phase,
        phase_started_at=NOW,
        phase_devices=100,
        reason="for a test",
        revision=1,
        created_at=NOW,
    )


def released(*numbers: int) -> dict[int, Release]:
    return {number: Release(number=number, state="released") for number in numbers}


def device(has: int | None = 1, name: str = "device", **facts: object) -> DeviceFacts:
    return DeviceFacts(device_id=name, installed_version=has, **facts)


def health(
    confirmed: int = 0,
    reverted: int = 0,
    failed: int = 0,
    declined: int = 0,
    offered: int | None = None,
    **more: object,
) -> Health:
    total = confirmed + reverted + failed + declined
    counts = Counts(
        offered=total if offered is None else offered,
        confirmed=confirmed,
        reverted=reverted,
        failed=failed,
        declined=declined,
    )
    return Health(phase=counts, total=counts, **more)


# --- plans


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"phases": (50, 10, 100)}, "ascending"),
        ({"phases": (10, 50)}, "the last one is 100"),
        ({"phases": (0, 100)}, "greater than 0"),
        ({"phases": ()}, "at least 1"),
        ({"groups": ("no spaces",)}, "pattern"),
        ({"window": "25:00-04:00"}, "pattern"),
        ({"window": "04:00-04:00"}, "opens when it closes"),
        ({"not_before": datetime(2026, 1, 1)}, "timezone"),  # noqa: DTZ001 - on purpose
        ({"failure_threshold": 0}, "greater than 0"),
        ({"soak_hours": float("nan")}, "greater than or equal|finite"),
        ({"colour": "blue"}, "Extra"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_a_sentence(plan: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidRecordError, match=says):
        parse_plan(**plan)


def test_a_plan_survives_its_json() -> None:
    plan = parse_plan(
        phases=(12.5, 100),
        window="22:00-04:00",
        not_before=NOW,
        quality=({"metric": "loss_increase", "limit": 2.5},),
        tags=("kitchen",),
    )
    assert RolloutPlan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    ("window", "hour", "is_open"),
    [
        (None, 3, True),
        ("01:00-05:00", 1, True),
        ("01:00-05:00", 5, False),
        ("22:00-04:00", 23, True),
        ("22:00-04:00", 3, True),
        ("22:00-04:00", 4, False),
        ("22:00-04:00", 12, False),
    ],
)
def test_a_window_may_go_over_midnight(window: str | None, hour: int, is_open: bool) -> None:
    assert parse_plan(window=window).is_window_open(NOW.replace(hour=hour)) is is_open


# --- who is in


@given(st.integers(1, 2**31), st.text(max_size=40), st.lists(st.floats(0.1, 99.9), min_size=1, max_size=5, unique=True))
def test_a_device_of_a_phase_is_in_every_later_one(rollout_id: int, device_id: str, phases: list[float]) -> None:
    plan = parse_plan(phases=(*sorted(phases), 100.0))
    rollout = replace(make(rollout_id=rollout_id), plan=plan)
    reached = [replace(rollout, phase=phase).reaches(device_id) for phase in range(len(plan.phases))]
    assert reached == sorted(reached)
    assert reached[-1]


def test_a_tenth_is_about_a_tenth_and_another_one_in_each_rollout() -> None:
    first, second = make(rollout_id=1), make(rollout_id=2)
    names = [f"device-{number}" for number in range(20_000)]
    in_first = {name for name in names if first.reaches(name)}
    in_both = {name for name in in_first if second.reaches(name)}
    assert 1800 < len(in_first) < 2200
    assert 120 < len(in_both) < 290


def test_the_place_in_the_queue_never_changes_between_releases_of_the_program() -> None:
    assert position_of(7, "3d0f1c6a5b8e4e0f9c1b2a3d4e5f6071") == pytest.approx(31.367, abs=0.001)


# --- what the reports say


def test_silence_never_advances() -> None:
    decision = advance(make(), health(offered=50), NOW + 100 * HOUR)
    assert (decision.action, decision.reason) == ("stay", "0 of 10 reports that phase 1 needs have come")


def test_a_phase_soaks_before_it_is_over() -> None:
    assert "soaks until 2026-03-01 14:00 UTC" in advance(make(), health(50), NOW + HOUR).reason
    decision = advance(make(), health(50), NOW + 2 * HOUR)
    assert (decision.action, decision.reason) == ("advance", "phase 1 (10%): 100.0% of 50 devices succeeded")
    assert advance(make(phase=2), health(50), NOW + 2 * HOUR).action == "finish"


def test_a_small_phase_needs_no_more_reports_than_it_has_devices() -> None:
    three = replace(make(), phase_devices=3)
    assert advance(three, health(2, offered=3), NOW + 2 * HOUR).action == "stay"
    assert advance(three, health(3), NOW + 2 * HOUR).action == "advance"
    assert "no device" in advance(replace(make(), phase_devices=0), health(), NOW + 2 * HOUR).reason


def test_failures_halt_at_once_and_before_the_minimum_of_reports() -> None:
    plan = {"failure_threshold": 0.2}
    # Nine reports that are still missing may all be good ...
    assert advance(make(**plan), health(0, reverted=1), NOW).action == "stay"
    # ... but two of ten failures are too many whatever comes.
    decision = advance(make(**plan), health(0, reverted=1, failed=1), NOW)
    assert decision.action == "halt"
    assert decision.reason.startswith("2 of 10 devices of this phase failed (1 reverted, 1 could not install it)")


def test_who_declines_is_neither_a_failure_nor_waited_for() -> None:
    ten = replace(make(failure_threshold=0.1), phase_devices=10)
    assert advance(ten, health(declined=9, offered=10), NOW).action == "stay"
    waiting = advance(ten, health(6, declined=3, offered=10), NOW + 2 * HOUR)
    assert waiting.reason == "6 of 7 reports that phase 1 needs have come; 3 declined by their owners' limits"
    gone_on = advance(ten, health(7, declined=3), NOW + 2 * HOUR)
    assert (gone_on.action, gone_on.reason) == ("advance", "phase 1 (10%): 100.0% of 7 devices succeeded")
    # A phase of which everybody declined says nothing about the release: people decide.
    assert advance(ten, health(declined=10), NOW + 2 * HOUR).reason.startswith("0 of 1 reports")
    # And who declined makes up for no failure of the others.
    of_two = advance(replace(make(failure_threshold=0.5), phase_devices=10), health(reverted=1, declined=8), NOW)
    assert (of_two.action, of_two.reason[:40]) == ("halt", "1 of 2 devices of this phase failed (1 r")


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_declines_alone_never_halt(confirmed: int, reverted: int, failed: int, declined: int) -> None:
    """It is decided as if those who declined were not in the phase at all."""
    others = confirmed + reverted + failed
    alone = replace(make(), phase_devices=max(others, 1))
    together = replace(make(), phase_devices=max(others, 1) + declined)
    with_them = advance(together, health(confirmed, reverted, failed, declined), NOW + 2 * HOUR)
    assert with_them.action == advance(alone, health(confirmed, reverted, failed), NOW + 2 * HOUR).action


def test_late_failures_of_an_earlier_phase_count_as_well() -> None:
    early = Health(phase=Counts(offered=5, confirmed=5), total=Counts(offered=55, confirmed=40, reverted=15))
    decision = advance(make(phase=1, failure_threshold=0.2), early, NOW)
    assert (decision.action, "all phases" in decision.reason) == ("halt", True)


def test_between_the_thresholds_people_decide() -> None:
    decision = advance(make(success_threshold=0.95, failure_threshold=0.2), health(90, failed=10), NOW + 3 * HOUR)
    assert decision.action == "stay"
    assert "Look at them, then advance or halt" in decision.reason


@pytest.mark.parametrize(
    ("metric", "limit", "mean", "action"),
    [
        ("loss_increase", 0.05, 0.06, "halt"),
        ("loss_increase", 0.05, 0.04, "advance"),
        ("loss_increase", 0.05, -0.2, "advance"),
        ("tokens_per_second", 10.0, 9.0, "halt"),
        ("tokens_per_second", 10.0, 11.0, "advance"),
        ("memory_bytes", 1e9, 1.1e9, "halt"),
    ],
)
def test_a_quality_limit_halts(metric: str, limit: float, mean: float, action: str) -> None:
    rollout = make(quality=(QualityLimit(metric=metric, limit=limit),))
    measured = {metric: Measured(mean=mean, devices=20)}
    assert advance(rollout, health(50, quality=measured), NOW + 3 * HOUR).action == action
    # What may be chance alone is no reason.
    noisy = {metric: Measured(mean=mean, devices=20, standard_error=abs(mean - limit))}
    assert advance(rollout, health(50, quality=noisy), NOW + 3 * HOUR).action == "advance"
    few = {metric: Measured(mean=mean, devices=3)}
    assert advance(rollout, health(50, quality=few), NOW + 3 * HOUR).action == "advance"


def test_by_hand_means_by_hand_but_halting_is_automatic() -> None:
    manual = make(is_automatic=False)
    assert "by hand" in advance(manual, health(100), NOW + 100 * HOUR).reason
    assert advance(manual, health(0, failed=10), NOW).action == "halt"


def test_a_paused_rollout_can_only_halt() -> None:
    paused = make("paused")
    assert advance(paused, health(100), NOW + 100 * HOUR).action == "stay"
    assert advance(paused, health(0, failed=10), NOW).action == "halt"


@pytest.mark.parametrize("state", ["draft", "halted", "finished"])
def test_what_is_not_running_decides_nothing(state: str) -> None:
    assert advance(make(state), health(0, failed=10), NOW + 100 * HOUR).action == "stay"


# --- what people do


def test_each_state_allows_what_makes_sense() -> None:
    allowed = {
        state: {action for action in ACTIONS if _is_allowed(make(state), action)}
        for state in ("draft", "running", "paused", "halted", "finished")
    }
    assert allowed == {
        "draft": {"start", "halt"},
        "running": {"pause", "halt", "advance"},
        "paused": {"resume", "halt"},
        "halted": set(),
        "finished": set(),
    }


def _is_allowed(rollout: Rollout, action: str) -> bool:
    try:
        change(rollout, action, now=NOW, reason="")
    except ConflictError:
        return False
    return True


def test_the_soak_begins_with_the_schedule_and_anew_after_a_pause() -> None:
    later = make("draft", not_before=NOW + 5 * HOUR)
    assert change(later, "start", now=NOW, reason="").phase_started_at == NOW + 5 * HOUR
    assert change(make("paused"), "resume", now=NOW + 9 * HOUR, reason="").phase_started_at == NOW + 9 * HOUR


# --- one device


def test_who_is_among_the_percentage_is_moved_and_told_so() -> None:
    rollout = make()
    inside = next(f"d{n}" for n in range(1000) if rollout.reaches(f"d{n}"))
    outside = next(f"d{n}" for n in range(1000) if not rollout.reaches(f"d{n}"))
    found = decide(device(name=inside), released(1, 2), [rollout], NOW)
    assert (found.version, found.is_move, found.rollout_id) == (2, True, 1)
    assert found.reasons == ("v2: rollout 1 is at 10% of its devices, and this one is among them.",)
    other = decide(device(name=outside), released(1, 2), [rollout], NOW)
    assert (other.version, other.is_move) == (1, False)
    assert other.reasons == (
        "Not v2: rollout 1 is at 10% of its devices, and this one comes later.",
        "It keeps v1.",
    )


@pytest.mark.parametrize(
    ("plan", "facts", "says"),
    [
        ({"channel": "beta"}, {}, "for channel beta, and this device is on stable"),
        ({"groups": ("a", "b")}, {}, "for group a or b, and this device is in no group"),
        ({"groups": ("a",)}, {"group": "c"}, "this device is in group c"),
        ({"tags": ("x", "y")}, {"tags": frozenset({"x"})}, "this one lacks y"),
        ({"not_before": NOW + HOUR}, {}, "begins at 2026-03-01 13:00 UTC"),
        ({"window": "22:00-04:00"}, {}, "only between 22:00-04:00 UTC"),
        ({}, {"reverted": frozenset({2})}, "failed its self-test on this device"),
        ({}, {"is_opted_out": True}, "opted out"),
    ],
)
def test_each_reason_not_to_move_is_told(plan: dict[str, object], facts: dict[str, object], says: str) -> None:
    rollout = make(phase=2, **plan)
    found = decide(device(**facts), released(1, 2), [rollout], NOW)
    assert (found.version, found.is_move) == (1, False)
    assert says in " ".join(found.reasons)


def test_who_matches_all_of_it_is_moved() -> None:
    rollout = make(phase=2, channel="beta", groups=("a", "b"), tags=("x",), window="10:00-14:00", not_before=NOW)
    facts = device(channel="beta", group="b", tags=frozenset({"x", "z"}))
    assert decide(facts, released(1, 2), [rollout], NOW).version == 2


def test_a_beta_device_does_not_stay_behind_the_stable_channel() -> None:
    rollouts = [
        make("finished", phase=2, channel="beta", version=2, rollout_id=1),
        make("finished", phase=2, version=3, rollout_id=2),
    ]
    assert decide(device(channel="beta"), released(1, 2, 3), rollouts, NOW).version == 3
    assert decide(device(channel="beta"), released(1, 2), rollouts[:1], NOW).version == 2
    assert decide(device(), released(1, 2), rollouts[:1], NOW).version == 1


def test_a_new_device_waits_for_no_window() -> None:
    rollout = make("finished", phase=2, window="22:00-04:00")
    assert decide(device(None), released(2), [rollout], NOW).version == 2
    assert decide(device(None), released(), [], NOW).version is None


def test_who_reverted_the_newest_gets_the_next_best() -> None:
    rollouts = [make("finished", phase=2, version=2), make("finished", phase=2, version=3, rollout_id=2)]
    found = decide(device(reverted=frozenset({3})), released(1, 2, 3), rollouts, NOW)
    assert (found.version, found.rollout_id) == (2, 1)


def test_forced_goes_past_everything_but_what_is_gone() -> None:
    facts = device(is_opted_out=True, forced_version=2)
    assert decide(facts, released(1, 2), [make("halted")], NOW).version == 2
    withdrawn = {**released(1), 2: Release(number=2, state="withdrawn", reason="wrong")}
    for releases in (withdrawn, released(1)):
        assert decide(facts, releases, [], NOW).version == 1
    assert decide(replace(facts, reverted=frozenset({2})), released(1, 2), [], NOW).version == 1
    # It is no pin: whoever has it goes on with everybody.
    has = device(2, forced_version=2)
    assert decide(has, released(2, 3), [make("finished", phase=2, version=3)], NOW).version == 3


def test_on_a_withdrawn_version_nobody_waits_for_their_turn() -> None:
    releases = {2: Release(number=2, state="withdrawn", reason="wrong language"), **released(3)}
    rollout = make(version=3)
    outside = next(f"d{n}" for n in range(1000) if not rollout.reaches(f"d{n}"))
    found = decide(device(2, outside), releases, [rollout], NOW)
    assert found.version == 3
    assert found.reasons[0] == "v2, which it runs, was withdrawn: wrong language."
    stopped = decide(device(2, outside), releases, [make("halted", version=3)], NOW)
    assert (stopped.version, stopped.is_move) == (None, False)
    assert "It waits for a newer release" in " ".join(stopped.reasons)


# --- all of it together

DEVICES = [f"device-{number}" for number in range(30)]
STATES = ("draft", "running", "paused", "halted", "finished")


class Fleet(RuleBasedStateMachine):
    """Thirty devices, releases and rollouts in any order; after each step the promises still hold."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.releases = released(1)
        self.rollouts: dict[int, Rollout] = {}
        self.facts = {name: device(1, name) for name in DEVICES}
        self.reached: dict[int, set[str]] = {}
        self.outcomes: dict[int, dict[str, str]] = {}

    @initialize()
    def begin(self) -> None:
        self.moves: list[tuple[str, int | None, int]] = []

    @rule(
        phases=st.sampled_from([(100.0,), (10.0, 100.0), (5.0, 30.0, 100.0)]),
        channel=st.sampled_from(["stable", "beta"]),
        groups=st.sampled_from([(), ("a",)]),
        state=st.sampled_from(["draft", "running"]),
    )
    @precondition(lambda self: len(self.releases) < 6)
    def release(self, phases: tuple[float, ...], channel: str, groups: tuple[str, ...], state: str) -> None:
        version, rollout_id = len(self.releases) + 1, len(self.rollouts) + 1
        self.releases[version] = Release(number=version, state="released")
        self.rollouts[rollout_id] = replace(
            make(state, version=version, rollout_id=rollout_id, phases=phases, channel=channel, groups=groups),
            phase_started_at=self.now,
            phase_devices=3,
        )
        self.outcomes[rollout_id] = {}

    @rule(data=st.data(), action=st.sampled_from(ACTIONS))
    @precondition(lambda self: self.rollouts)
    def operate(self, data: st.DataObject, action: str) -> None:
        rollout = self.rollouts[data.draw(st.sampled_from(sorted(self.rollouts)))]
        try:
            self.rollouts[rollout.rollout_id] = change(rollout, action, now=self.now, reason="by hand")
        except ConflictError:
            assert rollout.state in {"halted", "finished"} or action != "halt"

    @rule(data=st.data())
    @precondition(lambda self: self.rollouts)
    def withdraw(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.releases)))
        self.releases[version] = Release(number=version, state="withdrawn", reason="wrong")

    @rule(name=st.sampled_from(DEVICES), is_opted_out=st.booleans(), forced=st.none() | st.integers(1, 6))
    def decide_on_a_device(self, name: str, is_opted_out: bool, forced: int | None) -> None:
        self.facts[name] = replace(self.facts[name], is_opted_out=is_opted_out, forced_version=forced)

    @rule(name=st.sampled_from(DEVICES), channel=st.sampled_from(["stable", "beta"]), group=st.none() | st.just("a"))
    def put(self, name: str, channel: str, group: str | None) -> None:
        self.facts[name] = replace(self.facts[name], channel=channel, group=group)

    @rule(hours=st.integers(1, 5))
    def wait(self, hours: int) -> None:
        self.now += hours * HOUR

    @rule(name=st.sampled_from(DEVICES), is_good=st.booleans())
    def check(self, name: str, is_good: bool) -> None:
        facts = self.facts[name]
        found = decide(facts, self.releases, self.rollouts.values(), self.now)
        assert found == decide(facts, self.releases, self.rollouts.values(), self.now)
        assert found.reasons
        if not found.is_move:
            assert found.version in {None, facts.installed_version}
            return
        assert found.version is not None
        assert found.version > (facts.installed_version or 0), "a version never goes down"
        assert self.releases[found.version].state == "released"
        assert found.version not in facts.reverted
        if found.rollout_id is None:
            assert found.version == facts.forced_version
        else:
            assert not facts.is_opted_out
            rollout = self.rollouts[found.rollout_id]
            assert rollout.state in {"running", "finished"}, "only these move devices"
            assert rollout.plan.channel in {facts.channel, "stable"}
            assert not rollout.plan.groups or facts.group in rollout.plan.groups
            self.outcomes[found.rollout_id][name] = "confirmed" if is_good else "reverted"
        if is_good:
            self.facts[name] = replace(facts, installed_version=found.version)
        else:
            self.facts[name] = replace(facts, reverted=facts.reverted | {found.version})

    @rule(data=st.data())
    @precondition(lambda self: self.rollouts)
    def settle(self, data: st.DataObject) -> None:
        rollout = self.rollouts[data.draw(st.sampled_from(sorted(self.rollouts)))]
        outcomes = list(self.outcomes[rollout.rollout_id].values())
        found = health(outcomes.count("confirmed"), outcomes.count("reverted"))
        decision = advance(rollout, found, self.now)
        after = apply(rollout, decision, now=self.now)
        if rollout.state not in {"running", "paused"}:
            assert after == rollout
        assert after.phase in {rollout.phase, rollout.phase + 1}
        assert apply(
            after, advance(after, found, self.now), now=self.now
        ).phase <= after.phase or rollout.plan.soak == (timedelta(0)), "counting twice is counting once"
        self.rollouts[rollout.rollout_id] = after

    @invariant()
    def whoever_is_reached_stays_reached(self) -> None:
        for rollout in self.rollouts.values():
            now = {name for name in DEVICES if rollout.reaches(name)}
            assert self.reached.get(rollout.rollout_id, set()) <= now
            self.reached[rollout.rollout_id] = now


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
