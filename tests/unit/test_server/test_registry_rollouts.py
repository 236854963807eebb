"""Rollouts in the registry: what devices report moves them, and of two who change one at once, one is told."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from simulators.server_home import MODEL, Clock, make_manifest, make_package
from sqlalchemy import event

from delta_updates import Outcome, OutcomeReport, Quality
from server.config import Settings
from server.errors import ConflictError, NotFoundError
from server.offers import explain
from server.registry import GateResult, Registry
from server.registry.migrations import downgrade
from server.rollouts import Launch, Rollout, decide, parse_plan

STAGED = {"phases": (50, 100), "min_reports": 4, "soak_hours": 1.0, "failure_threshold": 0.5}


@pytest.fixture
def fleet(registry: Registry) -> Registry:
    """v1 is everybody's; forty devices run it."""
    add_release(registry, 1)
    for number in range(40):
        enrol(registry, f"device-{number}")
    return registry


def enrol(registry: Registry, name: str, *, has: int | None = 1) -> str:
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, _ = registry.enrol(token, name=name)
    if has is not None:
        registry.record_check(device.device_id, installed_version=has, installed_hash=None)
    return device.device_id


def add_release(registry: Registry, number: int, *, state: str = "finished", **plan: object) -> Rollout:
    kind = {} if number == 1 else {"kind": "adapter", "parent": number - 1, "adapter": "bcdef0123456789a"[number]}
    registry.add_candidate(make_manifest(**kind))
    registry.record_gate(MODEL, number, GateResult(candidate_loss=1.0, parent_loss=1.0, margin=0.0))
    registry.add_packages(MODEL, number, [make_package(number)])
    registry.mark_released(MODEL, number, launch=Launch(plan=parse_plan(**plan), state=state))
    return registry.rollouts(model=MODEL)[0]


def ids(registry: Registry) -> list[str]:
    return [device.device_id for device in registry.devices()]


def offered(registry: Registry, device_id: str) -> tuple[int | None, int | None]:
    """The version that a device would be offered, and the rollout that does it."""
    device = registry.device(device_id)
    found = explain(registry, device_id, installed_version=device.installed_version)
    return (found.version if found.is_move else None), found.rollout_id


def update(
    registry: Registry,
    device_id: str,
    outcome: Outcome = Outcome.CONFIRMED,
    quality: Quality | None = None,
) -> int | None:
    """One device asks, takes what it is offered, and reports; returns the version, if there was one."""
    version, rollout_id = offered(registry, device_id)
    if version is None:
        return None
    path = make_package(version).path
    offer = registry.record_offer(device_id, model=MODEL, version=version, package_path=path, rollout_id=rollout_id)
    reason = "" if outcome is Outcome.CONFIRMED else "no answer"
    report = OutcomeReport(offer_id=offer.offer_id, version=version, outcome=outcome, reason=reason, quality=quality)
    settled = registry.record_outcome(device_id, report)
    if settled is not None:
        registry.settle_rollout(settled, is_urgent=outcome is not Outcome.CONFIRMED)
    return version


def registry_failures(registry: Registry, rollout: Rollout) -> list[tuple[str, str, int]]:
    found = registry.rollout_failures(rollout.rollout_id)
    return [(failure.outcome, failure.reason, failure.reports) for failure in found]


def test_a_release_is_a_finished_rollout_and_moves_the_channel(fleet: Registry) -> None:
    rollout = add_release(fleet, 2)
    assert (rollout.version, rollout.state, rollout.percentage) == (2, "finished", 100)
    assert [(move.channel, move.version) for move in fleet.channels(MODEL)] == [("stable", 2)]
    assert [move.version for move in fleet.channel_history(MODEL)] == [1, 2]
    assert {offered(fleet, device_id)[0] for device_id in ids(fleet)} == {2}
    # Releasing what is released makes no second rollout.
    fleet.mark_released(MODEL, 2)
    assert len(fleet.rollouts(model=MODEL)) == 2


def test_a_good_rollout_goes_on_by_itself_until_everybody_has_it(fleet: Registry, clock: Clock) -> None:
    rollout = add_release(fleet, 2, state="running", **STAGED)
    assert 10 < rollout.phase_devices < 30
    first = [device_id for device_id in ids(fleet) if update(fleet, device_id) == 2]
    assert len(first) == rollout.phase_devices
    assert "soaks until" in fleet.rollout_progress(rollout.rollout_id).outlook
    clock.advance(hours=1, minutes=1)
    # Nobody reports any more: whoever asks next finds the next phase.
    second = [device_id for device_id in ids(fleet) if update(fleet, device_id) == 2]
    assert len(first) + len(second) == 40
    clock.advance(hours=1, minutes=1)
    assert offered(fleet, first[0]) == (None, None)
    done = fleet.rollout_progress(rollout.rollout_id)
    assert (done.rollout.state, done.total.confirmed, done.remaining) == ("finished", 40, 0)
    assert fleet.channels(MODEL)[0].version == 2
    assert [(change.state, change.phase) for change in fleet.rollout_changes(rollout.rollout_id)] == [
        ("running", 0),
        ("running", 1),
        ("finished", 1),
    ]


def test_a_bad_rollout_halts_itself_and_moves_nobody_else(fleet: Registry, clock: Clock) -> None:
    rollout = add_release(fleet, 2, state="running", **STAGED)
    took = [device_id for device_id in ids(fleet) if update(fleet, device_id, Outcome.REVERTED) == 2]
    assert len(took) == 2  # of the four reports that the phase needs, half may fail
    halted = fleet.rollout(rollout.rollout_id)
    assert halted.state == "halted"
    assert "2 of 4 devices of this phase failed (2 reverted" in halted.reason
    (why,) = registry_failures(fleet, rollout)
    assert why == ("reverted", "no answer", 2)
    clock.advance(hours=100)
    assert not [device_id for device_id in ids(fleet) if offered(fleet, device_id)[0]]
    assert fleet.channels(MODEL)[0].version == 1


def test_a_failed_download_that_worked_at_last_is_a_success(fleet: Registry) -> None:
    rollout = add_release(fleet, 2, state="running", **{**STAGED, "min_reports": 20})
    device_id = next(d for d in ids(fleet) if offered(fleet, d)[0])
    update(fleet, device_id, Outcome.FAILED)
    assert fleet.rollout_progress(rollout.rollout_id).total.failed == 1
    update(fleet, device_id)
    total = fleet.rollout_progress(rollout.rollout_id).total
    assert (total.offered, total.failed, total.confirmed) == (1, 0, 1)


def test_what_devices_measured_can_halt(fleet: Registry, clock: Clock) -> None:
    limit = ({"metric": "loss_increase", "limit": 0.05},)
    rollout = add_release(fleet, 2, state="running", **STAGED, quality=limit)
    for increase in (0.3, 0.4, 0.5, 0.6):
        device_id = next(d for d in ids(fleet) if offered(fleet, d)[0])
        update(fleet, device_id, quality=Quality(loss_increase=increase, memory_bytes=5_000_000_000))
    progress = fleet.rollout_progress(rollout.rollout_id)
    assert progress.quality["loss_increase"].mean == pytest.approx(0.45)
    assert progress.quality["loss_increase"].standard_error == pytest.approx(0.0645, abs=1e-4)
    assert (progress.quality["memory_bytes"].mean, progress.quality["memory_bytes"].devices) == (5e9, 4)
    clock.advance(minutes=1)
    assert offered(fleet, ids(fleet)[0])[0] is None
    assert "mean loss_increase of 4 devices is 0.45 (± 0.065); at most 0.05" in fleet.rollout(rollout.rollout_id).reason


def test_of_many_who_advance_what_they_saw_one_does(fleet: Registry) -> None:
    seen = add_release(fleet, 2, state="running", phases=(1, 2, 3, 100))

    def attempt(_: int) -> str:
        try:
            return fleet.change_rollout(seen.rollout_id, "advance", seen_revision=seen.revision).state
        except ConflictError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(attempt, range(6)))
    assert answers.count("running") == 1
    assert all("Look" in answer for answer in answers if answer != "running")
    assert fleet.rollout(seen.rollout_id).phase == 1


def test_many_checks_at_once_advance_one_phase(fleet: Registry, clock: Clock) -> None:
    rollout = add_release(fleet, 2, state="running", **{**STAGED, "phases": (40, 60, 100)})
    for device_id in ids(fleet):
        update(fleet, device_id)
    clock.advance(hours=2)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda device_id: offered(fleet, device_id), ids(fleet)[:12]))
    assert fleet.rollout(rollout.rollout_id).phase == 1
    assert [change.revision for change in fleet.rollout_changes(rollout.rollout_id)] == [1, 2]


def test_two_processes_count_reports_once_and_halt_once(any_settings: Settings, fleet: Registry, clock: Clock) -> None:
    other = Registry.open(any_settings, now=clock)
    rollout = add_release(fleet, 2, state="running", **STAGED)
    mine = [device_id for device_id in ids(fleet) if offered(fleet, device_id)[0]][:6]

    def fail(number: int) -> None:
        with suppress(ConflictError):  # halted before this device got its offer
            update((fleet, other)[number % 2], mine[number], Outcome.REVERTED)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(fail, range(6)))
    assert fleet.rollout(rollout.rollout_id).state == "halted"
    assert [change.state for change in other.rollout_changes(rollout.rollout_id)] == ["running", "halted"]
    other.close()


def test_an_offer_that_was_decided_on_before_the_halt_is_not_made_after_it(fleet: Registry) -> None:
    rollout = add_release(fleet, 2, state="running", **STAGED)
    device_id = next(d for d in ids(fleet) if offered(fleet, d)[0])
    fleet.change_rollout(rollout.rollout_id, "halt", reason="second thoughts")
    with pytest.raises(ConflictError, match="stopped"):
        fleet.record_offer(
            device_id, model=MODEL, version=2, package_path=make_package(2).path, rollout_id=rollout.rollout_id
        )
    assert fleet.offers(device_id) == ()


def test_a_newer_release_for_everybody_ends_what_ran_before(fleet: Registry) -> None:
    old = add_release(fleet, 2, state="running", **STAGED)
    beta = add_release(fleet, 3, state="running", channel="beta", **STAGED)
    add_release(fleet, 4)
    ended = fleet.rollout(old.rollout_id)
    assert (ended.state, ended.reason) == ("halted", "v4 is everybody's on channel stable now")
    assert fleet.rollout(beta.rollout_id).state == "running"


def test_withdrawing_stops_rollouts_and_moves_channels_back(fleet: Registry) -> None:
    add_release(fleet, 2)
    took, late = ids(fleet)[:2]
    assert update(fleet, took) == 2
    running = fleet.create_rollout(MODEL, 2, Launch(plan=parse_plan(**STAGED, channel="beta"), state="running"))
    fleet.withdraw(MODEL, 2, reason="wrong language")
    fleet.withdraw(MODEL, 2, reason="said again")
    assert fleet.version(MODEL, 2).reason == "wrong language"
    assert fleet.rollout(running.rollout_id).state == "halted"
    assert [move.version for move in fleet.channel_history(MODEL)] == [1, 2, 1]
    assert fleet.latest_released(MODEL).number == 1
    assert fleet.target(make_package(2).path) is None
    assert offered(fleet, late) == (None, None)
    assert offered(fleet, took) == (None, None)
    assert 2 in fleet.versions_in_the_field(MODEL)  # the next release brings a delta for those who have it
    with pytest.raises(ConflictError, match="only a released version is rolled out"):
        fleet.create_rollout(MODEL, 2, Launch())
    # The next release begins with a tenth, and with those who run what was withdrawn.
    add_release(fleet, 3, state="running", phases=(0.0001, 100))
    assert offered(fleet, took)[0] == 3
    assert offered(fleet, late)[0] is None


def test_a_withdrawn_version_keeps_its_number(fleet: Registry) -> None:
    add_release(fleet, 2)
    fleet.add_candidate(make_manifest(kind="adapter", parent=1, adapter="e"))
    add_release(fleet, 4)
    fleet.withdraw(MODEL, 4, reason="wrong")
    fleet.record_gate(MODEL, 3, GateResult(candidate_loss=1.0, parent_loss=1.0, margin=0.0))
    fleet.add_packages(MODEL, 3, [make_package(3)])
    with pytest.raises(ConflictError, match="versions never go down"):
        fleet.mark_released(MODEL, 3)
    with pytest.raises(ConflictError, match="only a candidate"):
        fleet.mark_released(MODEL, 4)
    with pytest.raises(ConflictError, match="only a release can be withdrawn"):
        fleet.withdraw(MODEL, 3, reason="not needed")


def test_what_operators_decide_about_a_device(fleet: Registry) -> None:
    first, second = ids(fleet)[:2]
    add_release(fleet, 2, state="draft")
    fleet.set_device_policy(first, tags=("a", "b"), group="pilot")
    changed = fleet.set_device_policy(first, add_tags=("c",), remove_tags=("a",), channel="beta")
    assert (changed.tags, changed.group, changed.channel) == (("b", "c"), "pilot", "beta")
    assert fleet.device_policy(second).tags == ()
    fleet.set_device_policy(second, forced_version=2)
    assert offered(fleet, second) == (2, None)
    assert update(fleet, second) == 2
    with pytest.raises(ConflictError, match="rollout restore"):
        fleet.set_device_policy(second, forced_version=1)
    with pytest.raises(ConflictError, match="does not exist"):
        fleet.set_device_policy(first, forced_version=9)
    with pytest.raises(NotFoundError):
        fleet.set_device_policy("0" * 32, group="pilot")
    with pytest.raises(NotFoundError):
        fleet.device_policy("0" * 32)


def test_only_devices_it_is_for_are_counted(fleet: Registry) -> None:
    chosen = ids(fleet)[:5]
    for device_id in chosen:
        fleet.set_device_policy(device_id, group="pilot", tags=("kitchen",))
    fleet.set_device_policy(chosen[0], is_opted_out=True)
    fleet.revoke_device(chosen[1])
    rollout = add_release(fleet, 2, state="running", groups=("pilot",), tags=("kitchen",))
    assert rollout.phase_devices == 3
    assert fleet.rollout_progress(rollout.rollout_id).remaining == 3


def test_a_rollout_to_a_group_moves_no_channel(fleet: Registry) -> None:
    add_release(fleet, 2, groups=("pilot",))
    assert fleet.channels(MODEL)[0].version == 1


def test_rollouts_are_listed_in_pages(fleet: Registry) -> None:
    for number in (2, 3, 4):
        add_release(fleet, number, state="draft")
    assert [r.version for r in fleet.rollouts(model=MODEL, state="draft")] == [4, 3, 2]
    first = fleet.rollouts(limit=2)
    assert [r.version for r in fleet.rollouts(before=first[-1].rollout_id)] == [2, 1]
    assert fleet.rollouts(model="other") == ()
    for lost in (fleet.rollout, fleet.rollout_progress, fleet.settle_rollout):
        with pytest.raises(NotFoundError, match="lamella rollout list"):
            lost(99)


def test_an_operators_explanation_names_other_channels(fleet: Registry) -> None:
    device_id = ids(fleet)[0]
    add_release(fleet, 2, channel="beta")
    case = fleet.device_case(device_id, installed_version=1, is_full=True)
    reasons = decide(case.facts, case.releases, case.rollouts, case.now).reasons
    assert reasons == ("Not v2: rollout 2 is for channel beta, and this device is on stable.", "It keeps v1.")
    brief = fleet.device_case(device_id, installed_version=1)
    assert [rollout.version for rollout in brief.rollouts] == [1]


def count_queries(registry: Registry, ask: Callable[[], object]) -> int:
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(registry._engine, "before_cursor_execute", note)
    try:
        ask()
    finally:
        event.remove(registry._engine, "before_cursor_execute", note)
    return len([statement for statement in seen if statement.lstrip().upper().startswith("SELECT")])


def test_a_decision_costs_the_same_however_long_the_history(fleet: Registry) -> None:
    device_id = ids(fleet)[0]
    add_release(fleet, 2)

    def ask() -> object:
        return explain(fleet, device_id, installed_version=1)

    before = count_queries(fleet, ask)
    for number in range(3, 12):
        add_release(fleet, number, state="draft" if number < 8 else "finished")
    # The device and the change token in one; its channel's pointer; rollouts; releases; what it reverted.
    assert count_queries(fleet, ask) == before == 5
    # Nobody reads again what all devices share: the second one asks for itself and for what it reverted.
    other = ids(fleet)[1]
    assert count_queries(fleet, lambda: explain(fleet, other, installed_version=1)) == 2
    fleet.record_check(device_id, installed_version=11, installed_hash=None)
    assert count_queries(fleet, lambda: explain(fleet, device_id, installed_version=11)) == 2
    assert count_queries(fleet, lambda: explain(fleet, device_id, installed_version=11)) == 1
    assert len(fleet.device_case(device_id, installed_version=1).rollouts) == 1


def test_releases_from_before_rollouts_are_everybodys(any_settings: Settings, clock: Clock) -> None:
    registry = Registry.open(any_settings, now=clock)
    for number in (1, 2, 3):
        add_release(registry, number)
    device_id = enrol(registry, "old")
    registry.withdraw(MODEL, 3, reason="wrong")
    with registry._connection() as connection:
        downgrade(connection, "0003")
    registry.close()
    again = Registry.open(any_settings, now=clock)
    assert again.version(MODEL, 3).state == "rejected"
    assert [move.version for move in again.channel_history(MODEL)] == [1, 2]
    assert offered(again, device_id)[0] == 2
    plan = again.rollouts(model=MODEL)[0].plan
    assert plan == Launch().plan
    # Numbers go on where they were.
    assert add_release(again, 4, state="running", **STAGED).rollout_id == 3
    again.close()
