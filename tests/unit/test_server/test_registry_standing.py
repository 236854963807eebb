"""What all devices share is read once, and never believed after a write that could have changed it."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from simulators.server_home import MODEL, Clock, make_manifest, make_package
from sqlalchemy import event

from delta_updates import UpdateQuery
from server.config import Settings
from server.errors import ConflictError, ForbiddenError
from server.registry import GateResult, Registry
from server.rollouts import Launch, parse_plan
from server.room import Room
from server.ways import Way, find_way

RUNNING = Launch(plan=parse_plan(phases=(100,), soak_hours=1.0), state="running")
EVERYBODY = frozenset(range(10))


class Signed:
    def signed_versions(self, model: str) -> frozenset[int]:
        assert model == MODEL
        return EVERYBODY


@pytest.fixture
def other(any_settings: Settings, clock: Clock, registry: Registry) -> Iterator[Registry]:
    """Another process's registry on the same database."""
    assert registry
    opened = Registry.open(any_settings, now=clock)
    yield opened
    opened.close()


@pytest.fixture
def device(other: Registry) -> str:
    """A device on v1, which v2 was released for."""
    release(other, 1)
    release(other, 2)
    token, _ = other.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    return other.enrol(token, name="kitchen")[0].device_id


def release(registry: Registry, number: int, launch: Launch | None = None) -> None:
    kind = {} if number == 1 else {"kind": "adapter", "parent": number - 1, "adapter": "bcdef"[number]}
    registry.add_candidate(make_manifest(**kind))
    registry.record_gate(MODEL, number, GateResult(candidate_loss=1.0, parent_loss=1.0, margin=0.0))
    registry.add_packages(MODEL, number, [make_package(number)])
    registry.mark_released(MODEL, number, **({} if launch is None else {"launch": launch}))


def way(registry: Registry, device_id: str) -> Way | None:
    query = UpdateQuery(model=MODEL, installed_version=1)
    return find_way(registry, Signed(), registry.asking(device_id), query, Room()).way


def version(registry: Registry, device_id: str) -> int | None:
    found = way(registry, device_id)
    return None if found is None else found.version.number


def force(registry: Registry, device_id: str) -> None:
    registry.set_device_policy(device_id, is_opted_out=True, forced_version=2)


WRITES: dict[str, tuple[Callable[[Registry, str], object], int | None]] = {
    "a newer release": (lambda registry, _: release(registry, 3), 3),
    "a newer release for nobody yet": (lambda registry, _: release(registry, 3, Launch(state="draft")), 2),
    "withdrawn": (lambda registry, _: registry.withdraw(MODEL, 2, reason="wrong"), None),
    "opted out": (lambda registry, device: registry.set_device_policy(device, is_opted_out=True), None),
    "forced": (force, 2),
    "its packages are gone": (
        lambda registry, _: registry.collect_packages(MODEL, keep_versions=1, signed=EVERYBODY),
        2,
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_another_process_writes_counts_at_once(
    registry: Registry, other: Registry, device: str, name: str
) -> None:
    write, expected = WRITES[name]
    assert version(registry, device) == 2
    write(other, device)
    assert version(registry, device) == version(other, device) == expected


def test_a_halted_rollout_moves_no_further_device(registry: Registry, other: Registry, device: str) -> None:
    release(other, 3, RUNNING)
    rollout = other.rollouts(model=MODEL)[0]
    found = way(registry, device)
    assert found is not None
    assert found.version.number == 3
    other.change_rollout(rollout.rollout_id, "halt", reason="wrong")
    # Also not one that was decided on before, and is written down after.
    with pytest.raises(ConflictError, match="was stopped"):
        registry.record_offer(
            device, model=MODEL, version=3, package_path=found.package.path, rollout_id=found.rollout_id
        )
    assert registry.offers(device) == ()
    assert version(registry, device) == 2


def test_a_revoked_device_is_refused_at_once(registry: Registry, other: Registry) -> None:
    release(other, 1)
    token, _ = other.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, credential = other.enrol(token, name="kitchen")
    assert registry.authenticate(credential).device == device
    other.revoke_device(device.device_id)
    with pytest.raises(ForbiddenError):
        registry.authenticate(credential)


def test_nothing_shared_is_read_for_the_second_device(registry: Registry, other: Registry, device: str) -> None:
    token, _ = other.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    second = other.enrol(token, name="hall")[0].device_id
    assert version(registry, device) == 2
    statements: list[str] = []
    event.listen(registry.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    assert version(registry, second) == 2
    asked = [statement for statement in statements if "SELECT" in statement]
    # Itself, what it reverted, and whether an offer is open.
    assert len(asked) == 3, asked
    assert not any("FROM versions" in one or "FROM packages" in one or "FROM rollouts" in one for one in asked)


def test_versions_that_nobody_made_take_bounded_memory(registry: Registry, other: Registry, device: str) -> None:
    asking = registry.asking(device)
    standing = registry.standing(asking.token)
    for number in range(3, 12_000):
        standing.keep(("made up", number), lambda: 1)
    assert len(standing._kept) <= 10_000
    assert registry.case_of(asking, installed_version=11_999).releases == registry.releases(MODEL, {2})


def close_connections(registry: Registry) -> None:
    """As a restart of PostgreSQL would; SQLite has no server, and nothing to close."""
    if registry.engine.dialect.name == "sqlite":
        return
    with registry._connection() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_read_survives_a_restart_of_the_database(registry: Registry, other: Registry, device: str) -> None:
    assert registry.asking(device)
    close_connections(other)
    assert registry.asking(device).device.device_id == device


def test_a_connection_that_rested_is_tried_before_a_write(
    registry: Registry, other: Registry, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.record_check(device, installed_version=1, installed_hash=None)
    close_connections(other)
    monkeypatch.setattr("server.registry.transactions._RESTED_S", 0.0)
    registry.record_check(device, installed_version=3, installed_hash=None)
    assert registry.device(device).installed_version == 3
