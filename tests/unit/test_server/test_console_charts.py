from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulators.server_home import Clock, make_event, make_manifest, make_user_event, release

from delta_updates import OutcomeReport
from privacy.accountant import epsilon_by_device
from privacy.user_level import user_epsilon
from server.console.charts import history, nice_ticks, round_chart, versions_chart
from server.console.lineage import lineage
from server.console.runs import epsilon_by_round, user_epsilon_by_round
from server.registry import Registry
from server.registry.fleet import Move

START = datetime(2026, 3, 1, tzinfo=UTC)


@given(low=st.floats(-1e6, 1e6), length=st.floats(0, 1e6), whole=st.booleans())
def test_ticks_are_few_and_enclose_what_is_drawn(low: float, length: float, whole: bool) -> None:
    ticks = nice_ticks(low, low + length, whole=whole)
    assert 2 <= len(ticks) <= 8
    # A millionth of a step is less than a pixel.
    unseen = 1e-6 * (ticks[1] - ticks[0])
    assert ticks[0] <= low + unseen
    assert ticks[-1] >= low + length - unseen
    assert ticks == sorted(set(ticks))


def test_a_curve_leaves_out_what_is_not_finite() -> None:
    chart = round_chart("loss", [(1, 2.5), (2, float("inf")), (3, 2.0)], name="loss", from_zero=False)
    assert chart is not None
    assert [row[0] for row in chart.rows] == ["1", "3"]
    assert len(chart.lines[0].path.split()) == 2
    assert round_chart("loss", [(1, float("nan"))], name="loss", from_zero=True) is None


def test_a_limit_is_inside_the_drawing() -> None:
    chart = round_chart("ε", [(1, 0.5)], name="ε", from_zero=True, limit=8.0)
    assert chart is not None
    assert chart.limit is not None
    assert 0 < chart.limit.at < chart.bottom
    assert chart.y_ticks[0].label == "0"


def move(hours: int, source: int | None, target: int | None, devices: int = 1, *, is_new: bool = False) -> Move:
    return Move(at=START + timedelta(hours=hours), source=source, target=target, devices=devices, is_new=is_new)


def test_versions_are_counted_over_time() -> None:
    moves = [move(0, None, None, 3, is_new=True), move(0, None, 1, 1, is_new=True), move(1, None, 2, 2), move(3, 2, 3)]
    times, counts = history(moves, now=START + timedelta(hours=9))
    assert [time.hour for time in times] == [0, 1, 3, 9]
    assert counts == {None: [3, 1, 1, 1], 1: [1, 1, 1, 1], 2: [0, 2, 1, 1], 3: [0, 0, 1, 1]}
    assert history([], now=START) == ([], {})
    assert versions_chart([], now=START) is None


def test_many_versions_are_drawn_as_the_newest_and_older() -> None:
    moves = [move(number, None, number, is_new=True) for number in range(1, 12)]
    chart = versions_chart(moves, now=START + timedelta(hours=20))
    assert chart is not None
    assert [area.name for area in chart.areas] == ["older", "v6", "v7", "v8", "v9", "v10", "v11"]
    assert chart.rows[-1][1:] == ("5", "1", "1", "1", "1", "1", "1")


@pytest.mark.parametrize("days", [0, 10, 60])
def test_the_registry_tells_how_devices_came_to_their_versions(registry: Registry, clock: Clock, days: int) -> None:
    registry.add_candidate(make_manifest())
    release(registry, 1)
    registry.add_candidate(make_manifest(kind="adapter", parent=1, adapter="b"))
    release(registry, 2)
    token, _ = registry.create_enrolment_token("tiny", valid_for=timedelta(days=400), uses=3)
    ids = [registry.enrol(token, name=f"d{number}")[0].device_id for number in range(3)]
    registry.record_check(ids[2], installed_version=1, installed_hash=None)
    for version in (1, 2):
        clock.advance(minutes=7)
        for device_id in ids[:version]:
            _confirm(registry, device_id, version)
    clock.advance(days=days)
    times, counts = history(registry.version_moves("tiny"), now=clock())
    assert {version: series[-1] for version, series in counts.items()} == {None: 0, 1: 1, 2: 2}
    assert times == sorted(times)
    (first, second) = registry.fleet_counts(lately=timedelta(hours=1))
    assert (first.version, first.devices, second.version, second.devices) == (1, 1, 2, 2)
    registry.revoke_device(ids[0])
    assert sum(count.devices for count in registry.fleet_counts(lately=timedelta(hours=1))) == 2
    assert registry.outcomes("tiny", 2) == {"confirmed": 2}
    assert registry.troubles(limit=5) == ()
    assert registry.version_moves("other") == ()


def _confirm(registry: Registry, device_id: str, version: int) -> None:
    offer = registry.record_offer(
        device_id, model="tiny", version=version, package_path=f"packages/tiny/{version}/full.lmpkg"
    )
    report = {"offer_id": offer.offer_id, "version": version, "outcome": "confirmed"}
    registry.record_outcome(device_id, OutcomeReport.model_validate(report))


def test_lineage_keeps_a_line_and_puts_branches_beside_it(registry: Registry) -> None:
    registry.add_candidate(make_manifest())
    for parent, adapter in ((1, "b"), (2, "c"), (2, "d"), (3, "e")):
        registry.add_candidate(make_manifest(kind="adapter", parent=parent, adapter=adapter))
    graph = lineage(registry.versions("tiny"))
    assert [node.version.number for node in graph.nodes] == [5, 4, 3, 2, 1]
    lanes = {node.version.number: node.x for node in graph.nodes}
    assert lanes[1] == lanes[2] == lanes[3] == lanes[5] < lanes[4]
    assert len(graph.paths) == 4
    assert graph.left_out == 0


def test_the_privacy_curve_is_that_of_the_busiest_device() -> None:
    events = [make_event("run", n, device_id=d) for n in range(1, 4) for d in ("a", "b") if d == "a" or n == 1]
    curve = epsilon_by_round(events, target_delta=1e-5)
    assert [number for number, _ in curve] == [1, 2, 3]
    assert curve[-1][1] == pytest.approx(max(epsilon_by_device(events, target_delta=1e-5).values()))
    assert [value for _, value in curve] == sorted(value for _, value in curve)
    many = [make_event("run", n, device_id="a") for n in range(1, 61)]
    assert len(epsilon_by_round(many, target_delta=1e-5)) <= 24


def test_epsilon_per_user_by_round_is_the_costliest_users_and_of_no_example() -> None:
    events = [make_event("run", 1), make_user_event("run", 2, "b"), make_user_event("run", 1, "a", "b")]
    curve = user_epsilon_by_round(events, target_delta=1e-6)
    assert [server_round for server_round, _ in curve] == [1, 2]
    assert curve[1][1] == user_epsilon(events[1:], target_delta=1e-6) > curve[0][1]
    many = [make_user_event("run", number, "a") for number in range(100)]
    assert len(user_epsilon_by_round(many, target_delta=1e-6)) <= 24
