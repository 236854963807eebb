from concurrent.futures import ThreadPoolExecutor

import pytest
from simulators.server_home import MODEL, Clock, make_event, make_manifest

from privacy.event import PrivacyEvent
from server.errors import ConflictError, InvalidRecordError, NotFoundError, RegistryError
from server.registry import Registry, RunRecord

ARTIFACTS = {"adapter": "a" * 64, "optimizer": "b" * 64}


def start(registry: Registry, run_id: str = "run-1") -> RunRecord:
    if not registry.versions(MODEL):
        registry.add_candidate(make_manifest())
    base = registry.version(MODEL, 1)
    return registry.create_run(
        run_id,
        model=MODEL,
        recipe={"cohort": 4, "name": "café"},
        base_version=1,
        base_hash=base.manifest.base_hash,
        parent_version=1,
    )


def record(registry: Registry, server_round: int, *events: PrivacyEvent, loss: float | None = 2.5) -> None:
    registry.record_round(
        "run-1",
        server_round,
        status="released",
        replies=len(events),
        failures={"17": "too late"},
        held_out_loss=loss,
        events=events,
        artifacts=ARTIFACTS,
        facts={"seconds": 1.5},
    )


def test_a_run_is_written_down_from_start_to_end(registry: Registry, clock: Clock) -> None:
    run = start(registry)
    assert (run.status, run.started_at, run.finished_at) == ("running", clock(), None)
    assert registry.run("run-1") == run
    clock.advance(minutes=3)
    registry.finish_run("run-1", status="failed", reason="no devices")
    run = registry.run("run-1")
    assert (run.status, run.reason, run.finished_at) == ("failed", "no devices", clock())
    assert run.recipe == {"cohort": 4, "name": "café"}


def test_a_run_name_is_used_once(registry: Registry) -> None:
    start(registry)
    with pytest.raises(ConflictError, match="already"):
        start(registry)


def test_a_run_starts_from_a_base_that_exists(registry: Registry) -> None:
    start(registry)
    base_hash = registry.version(MODEL, 1).manifest.base_hash
    with pytest.raises(NotFoundError):
        registry.create_run("x", model=MODEL, recipe={}, base_version=1, base_hash=base_hash, parent_version=9)
    with pytest.raises(InvalidRecordError, match="has base"):
        registry.create_run("x", model=MODEL, recipe={}, base_version=1, base_hash="0" * 64, parent_version=None)


def test_runs_are_listed_newest_first_in_pages(registry: Registry, clock: Clock) -> None:
    for number in range(3):
        start(registry, f"run-{number}")
        clock.advance(minutes=number)  # the first two start at the same moment
    names = [run.run_id for run in registry.runs()]
    assert names == ["run-2", "run-1", "run-0"]
    assert [run.run_id for run in registry.runs(MODEL, limit=2)] == names[:2]
    assert [run.run_id for run in registry.runs(after=names[1])] == names[2:]
    assert registry.runs("other") == ()
    with pytest.raises(NotFoundError):
        registry.runs(after="none")


def test_a_round_is_written_down_with_its_events(registry: Registry, clock: Clock) -> None:
    start(registry)
    assert registry.last_round("run-1") is None
    events = [make_event("run-1", 1, device_id=f"user-{number}") for number in range(3)]
    record(registry, 1, *events)
    record(registry, 2, make_event("run-1", 2), loss=None)
    first, last = registry.rounds("run-1")
    assert (first.replies, first.failures, first.held_out_loss) == (3, {"17": "too late"}, 2.5)
    assert (first.artifacts, first.facts, first.recorded_at) == (ARTIFACTS, {"seconds": 1.5}, clock())
    assert last == registry.last_round("run-1")
    assert registry.privacy_events(run_id="run-1")[:3] == tuple(events)
    assert registry.privacy_events(device_id="user-2") == (events[2],)
    assert len(registry.privacy_events(model=MODEL)) == 4
    assert registry.privacy_events(model="other") == ()
    page = registry.privacy_events(after=events[0].event_id, limit=2)
    assert page == tuple(events[1:])


def test_a_round_is_recorded_once(registry: Registry) -> None:
    start(registry)
    record(registry, 1, make_event("run-1", 1))
    with pytest.raises(ConflictError, match="Round 1"):
        record(registry, 1, make_event("run-1", 1))
    assert len(registry.privacy_events()) == 1


def test_an_event_is_charged_once_and_a_refused_round_leaves_nothing(registry: Registry) -> None:
    start(registry)
    event = make_event("run-1", 1)
    record(registry, 1, event)
    again = event.model_copy(update={"server_round": 2})
    with pytest.raises(ConflictError, match=event.event_id):
        record(registry, 2, make_event("run-1", 2), again)
    twice = make_event("run-1", 2)
    with pytest.raises(ConflictError, match=twice.event_id):
        record(registry, 2, twice, twice)
    assert len(registry.rounds("run-1")) == len(registry.privacy_events()) == 1


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(registry: Registry, loss: float) -> None:
    start(registry)
    with pytest.raises(InvalidRecordError, match="not finite"):
        record(registry, 1, loss=loss)


def test_an_event_of_another_round_is_refused(registry: Registry) -> None:
    start(registry)
    with pytest.raises(InvalidRecordError, match="round 2"):
        record(registry, 1, make_event("run-1", 2))


def test_facts_without_json_are_refused(registry: Registry) -> None:
    start(registry)
    with pytest.raises(RegistryError):
        registry.record_round(
            "run-1",
            1,
            status="void",
            replies=0,
            failures={},
            held_out_loss=None,
            events=[],
            artifacts={},
            facts={"loss": float("nan")},
        )
    assert registry.rounds("run-1") == ()


def test_a_failed_run_that_goes_on_is_running_again(registry: Registry) -> None:
    start(registry)
    registry.finish_run("run-1", status="failed", reason="power cut")
    record(registry, 1)
    run = registry.run("run-1")
    assert (run.status, run.reason, run.finished_at) == ("running", "", None)


def test_of_two_who_record_the_same_round_one_wins(registry: Registry) -> None:
    start(registry)

    def attempt(_: int) -> bool:
        try:
            record(registry, 1, make_event("run-1", 1))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(4))) == 1
    assert len(registry.privacy_events()) == 1


def test_unknown_runs_are_said_to_be_unknown(registry: Registry) -> None:
    for call in (registry.run, lambda name: registry.finish_run(name, status="completed")):
        with pytest.raises(NotFoundError, match="no run 'none'"):
            call("none")
    with pytest.raises(NotFoundError, match="no run"):
        record(registry, 1)
