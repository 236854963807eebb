"""Nothing new without the database; and how many queries every other answer to a device takes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from simulators.server_home import MODEL, make_event, make_manifest, make_package
from simulators.service_process import running_services
from simulators.update_api import Service
from sqlalchemy import event, update

from client_sdk.identity import Bearer
from client_sdk.service import UpdateService
from client_sdk.transport import Answer, Transport
from delta_updates import PROTOCOL_HEADER, OutcomeReport, UpdateQuery
from delta_updates.offer import MAX_CHAIN
from server.api.seen import SeenDevices
from server.errors import DatabaseError
from server.registry import DeviceRecord, GateResult, Registry
from server.registry.tables import DeviceRow


@contextmanager
def counted(service: Service) -> Iterator[list[str]]:
    """The statements that the registry runs in the block, save those of the watcher beside the requests."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement != "BEGIN" and "FROM changes" not in statement:
            statements.append(statement)

    engine = service.app.state.services.registry.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


def on_v3(service: Service) -> dict[str, object]:
    return {"installed_version": 3, "installed_hash": service.hash_of(3)}


def look(service: Service) -> None:
    """What the service does once a second."""
    service.app.state.latest_change.look()


@pytest.fixture
def told(api: Service) -> dict[str, str]:
    """A device's headers after it was told "nothing new"."""
    look(api)
    device = api.enrol()
    answer = api.check(device, **on_v3(api))
    assert answer.status_code == 204
    return {**device, "if-none-match": answer.headers["etag"]}


def test_a_repeated_question_touches_no_database(api: Service, told: dict[str, str]) -> None:
    installed = on_v3(api)
    with counted(api) as statements:
        answer = api.check(told, **installed)
    assert (answer.status_code, answer.content, statements) == (304, b"", [])
    assert answer.headers["etag"] == told["if-none-match"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]


def test_another_question_is_another_answer(api: Service, told: dict[str, str]) -> None:
    other = {**told, **api.enrol()}
    assert api.check(other, **on_v3(api)).status_code == 204
    assert api.check(told, installed_version=1, installed_hash=api.hash_of(1)).status_code == 200
    assert api.check({**told, PROTOCOL_HEADER: "1"}, **on_v3(api)).status_code == 204
    assert api.check({**told, "if-none-match": '"forged"'}, **on_v3(api)).status_code == 204
    nobody = {"authorization": "Bearer " + "0" * 32 + "." + "x" * 43, "if-none-match": told["if-none-match"]}
    assert api.check(nobody, **on_v3(api)).status_code == 401
    assert api.client.get("/v1/updates/check", headers=told).status_code == 405


def test_an_offer_is_never_remembered(api: Service) -> None:
    look(api)
    answer = api.check(api.enrol(), installed_version=1, installed_hash=api.hash_of(1))
    assert (answer.status_code, "etag" in answer.headers) == (200, False)


def test_a_release_is_seen_at_the_next_look(api: Service, told: dict[str, str]) -> None:
    api.home.candidate(9, parent=3)
    api.home.publish(4)
    look(api)
    assert api.check(told, **on_v3(api)).json()["version"] == 4


def test_a_revoked_device_is_told_at_the_next_look(api: Service, told: dict[str, str]) -> None:
    device_id = told["Authorization"].removeprefix("Bearer ").partition(".")[0]
    api.client.post(f"/v1/operator/devices/{device_id}/revoke", headers=api.operator)
    look(api)
    assert api.check(told, **on_v3(api)).status_code in {200, 403}
    api.home.registry.revoke_device(device_id)
    look(api)
    assert api.check(told, **on_v3(api)).status_code == 403


def test_what_was_seen_too_long_ago_is_not_believed(api: Service, told: dict[str, str]) -> None:
    latest = api.app.state.latest_change
    assert latest.token() is not None
    latest._seen = (latest.token() or "", time.monotonic() - 6)
    assert latest.token() is None
    answer = api.check(told, **on_v3(api))
    assert answer.status_code == 204 or latest.token() is not None


def test_it_can_be_turned_off(three_versions: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(three_versions, tmp_path / "off")
    with Service(tmp_path / "off", check_memory_hours=0.0) as api:
        look(api)
        assert "etag" not in api.check(api.enrol(), **on_v3(api)).headers


PASSED = GateResult(candidate_loss=1.0, parent_loss=1.0, margin=0.0)
LOUD: dict[str, Callable[[Registry, DeviceRecord], object]] = {
    "candidate": lambda registry, _: registry.add_candidate(make_manifest(base="b")),
    "gate": lambda registry, _: registry.record_gate(MODEL, 2, PASSED),
    "packages": lambda registry, _: registry.add_packages(MODEL, 2, [make_package(2)]),
    "release": lambda registry, _: registry.mark_released(MODEL, 2),
    "revoke": lambda registry, device: registry.revoke_device(device.device_id),
    "collect": lambda registry, _: registry.collect_packages(MODEL, keep_versions=1, signed=frozenset({1, 2})),
    "reject": lambda registry, _: registry.reject(MODEL, registry.add_candidate(make_manifest()).number, "no"),
}


def test_every_write_that_may_change_an_answer_changes_the_token(registry: Registry) -> None:
    registry.add_candidate(make_manifest())
    registry.add_packages(MODEL, 1, [make_package(1)])
    registry.mark_released(MODEL, 1)
    registry.add_candidate(make_manifest(kind="adapter", parent=1, adapter="b"))
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, _ = registry.enrol(token, name="kitchen")
    for name, write in LOUD.items():
        before = registry.change_token()
        write(registry, device)
        assert registry.change_token() != before, name


def test_what_devices_and_rounds_write_does_not(registry: Registry) -> None:
    registry.add_candidate(make_manifest())
    registry.add_packages(MODEL, 1, [make_package(1)])
    registry.mark_released(MODEL, 1)
    base = registry.version(MODEL, 1).manifest.base_hash
    before = registry.change_token()
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, _ = registry.enrol(token, name="kitchen")
    registry.record_check(device.device_id, installed_version=None, installed_hash=None)
    offer = registry.record_offer(device.device_id, model=MODEL, version=1, package_path=make_package(1).path)
    done = OutcomeReport(offer_id=offer.offer_id, version=1, outcome="confirmed")
    registry.record_outcome(device.device_id, done)
    assert registry.device(device.device_id).installed_version == 1
    registry.create_run("run", model=MODEL, recipe={}, base_version=1, base_hash=base, parent_version=1)
    registry.record_round(
        "run",
        1,
        status="released",
        replies=1,
        failures={},
        held_out_loss=None,
        events=[make_event("run", 1)],
        artifacts={},
        facts={},
    )
    assert registry.change_token() == before


def test_a_write_that_fails_changes_nothing(registry: Registry) -> None:
    registry.add_candidate(make_manifest())
    before = registry.change_token()
    with pytest.raises(Exception, match="no full package"):
        registry.mark_released(MODEL, 1)
    assert registry.change_token() == before


MOST: dict[str, int] = {"nothing": 3, "offer": 20 + MAX_CHAIN, "report": 13, "download": 2}


def test_no_answer_takes_more_queries_for_a_larger_fleet(api: Service) -> None:
    def queries() -> dict[str, int]:
        found, device, first = {}, api.enrol(), api.hash_of(1)
        with counted(api) as statements:
            offer = api.check(device, installed_version=1, installed_hash=first).json()
        found["offer"] = len(statements)
        with counted(api) as statements:
            assert api.client.get(f"/v1/targets/{offer['package']['path']}", headers=device).status_code == 200
        found["download"] = len(statements)
        report = {"offer_id": offer["offer_id"], "version": offer["version"], "outcome": "confirmed"}
        with counted(api) as statements:
            assert api.client.post("/v1/updates/report", json=report, headers=device).status_code == 204
        found["report"] = len(statements)
        latest = api.home.registry.latest_released(MODEL)
        assert latest is not None
        installed = {"installed_version": latest.number, "installed_hash": latest.manifest.tree_hash}
        with counted(api) as statements:
            assert api.check(device, **installed).status_code == 204
        found["nothing"] = len(statements)
        return found

    few = queries()
    for number in range(30):
        api.home.registry.enrol(
            api.home.registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))[0], name=f"d{number}"
        )
    for number in (4, 5):
        api.home.candidate(number + 10, parent=number - 1)
        api.home.publish(number)
    many = queries()
    # Beside an offer stands a chain of deltas; of at most so many steps, however many versions there are.
    assert {name: count for name, count in many.items() if name != "offer"} == {
        name: count for name, count in few.items() if name != "offer"
    }
    assert not [name for name, count in many.items() if count > MOST[name]], many


@pytest.mark.slow
def test_a_device_repeats_its_question_cheaply_also_after_a_restart(api: Service, tmp_path: Path) -> None:
    statuses = []

    class Noted(Transport):
        def call(self, *args: object, **options: object) -> Answer:
            answer = super().call(*args, **options)
            statuses.append(answer.status)
            return answer

    credential = api.enrol()["Authorization"].removeprefix("Bearer ")
    query = UpdateQuery(model=MODEL, installed_version=3, installed_hash=api.hash_of(3))
    with running_services({"LAMELLA_HOME": str(api.home.settings.home)}, count=2) as addresses:
        for address in addresses * 2:
            service = UpdateService(Noted(address, identity=Bearer(credential)), memory=tmp_path / "nothing-new")
            assert service.ask(query) is None
    assert statuses[0] == 204
    # What one process has said, the other one knows.
    assert statuses[-2:] == [304, 304]


@pytest.mark.parametrize(("installed", "statements"), [(3, 1), (2, 3), (1, 3), (None, 3)])
def test_a_check_reads_its_own_device_and_nothing_that_all_share(
    shared_api: Service, installed: int | None, statements: int
) -> None:
    device = shared_api.enrol() | {PROTOCOL_HEADER: "4"}
    query = {"installed_version": installed, "installed_hash": shared_api.hash_of(installed)} if installed else {}
    first = shared_api.check(device, **query)
    with counted(shared_api) as asked:
        again = shared_api.check(device, **query)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    # The device with its policy and the change token; what it reverted; whether an offer is open.
    assert len(asked) == statements


def test_who_was_here_is_written_for_many_at_once(api: Service) -> None:
    registry, seen = api.home.registry, api.app.state.services.seen
    look(api)
    device = api.enrol()
    device_id = device["Authorization"].removeprefix("Bearer ").partition(".")[0]
    etag = api.check(device, **on_v3(api)).headers["etag"]
    hour_ago = datetime.now(UTC) - timedelta(hours=1)

    def was_here(headers: dict[str, str], status: int) -> bool:
        with registry._connection() as connection:
            connection.execute(update(DeviceRow).values(last_seen_at=hour_ago))
        with counted(api) as statements:
            assert api.check(headers, **on_v3(api)).status_code == status
        assert not any("UPDATE" in statement for statement in statements)
        assert registry.device(device_id).last_seen_at == hour_ago
        seen.write()
        last = registry.device(device_id).last_seen_at
        return last is not None and last > hour_ago

    assert was_here(device, 204)
    assert was_here({**device, "if-none-match": etag}, 304)
    # Whoever only names the device was not it.
    forged = {"authorization": f"Bearer {device_id}.{'x' * 43}", "if-none-match": etag}
    assert not was_here(forged, 401)


def test_who_was_here_waits_for_a_database_that_does_not_answer(registry: Registry) -> None:
    registry.add_candidate(make_manifest())
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, _ = registry.enrol(token, name="kitchen")

    class Stubborn:
        fails = True

        def note_seen(self, device_ids: set[str]) -> None:
            if self.fails:
                raise DatabaseError("It does not answer.")
            registry.note_seen(device_ids)

    stubborn = Stubborn()
    seen = SeenDevices(cast("Registry", stubborn))
    seen.note(device.device_id)
    with pytest.raises(DatabaseError):
        seen.write()
    stubborn.fails = False
    seen.write()
    assert registry.device(device.device_id).last_seen_at is not None
