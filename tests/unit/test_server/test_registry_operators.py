import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from simulators.server_home import Clock, make_manifest
from sqlalchemy import text

from server.api.callers import Caller, audited
from server.config import Settings
from server.errors import (
    ConflictError,
    CredentialRefusedError,
    DatabaseError,
    EnrolmentRefusedError,
    InvalidRecordError,
    NotFoundError,
)
from server.registry import Registry, Role
from server.registry.migrations import downgrade

PASSWORD = "correct horse battery"
HOUR = timedelta(hours=1)


def dump(registry: Registry) -> str:
    with registry._connection() as connection:
        tables = ("operators", "operator_tokens", "sessions", "audit_log")
        return "".join(str(connection.execute(text(f"SELECT * FROM {table}")).all()) for table in tables)  # noqa: S608


def test_each_role_includes_the_ones_before_it() -> None:
    allowed = {(role, needed) for role in Role for needed in Role if role.includes(needed)}
    assert allowed == {
        (Role.VIEWER, Role.VIEWER),
        (Role.PUBLISHER, Role.VIEWER),
        (Role.PUBLISHER, Role.PUBLISHER),
        (Role.ADMIN, Role.VIEWER),
        (Role.ADMIN, Role.PUBLISHER),
        (Role.ADMIN, Role.ADMIN),
    }


def test_an_operator_logs_in_with_the_password_and_no_other(registry: Registry) -> None:
    registry.add_operator("ada", role=Role.ADMIN, password=PASSWORD)
    registry.add_operator("ci", role=Role.VIEWER)
    assert registry.operator_by_password("ada", PASSWORD).role is Role.ADMIN
    for name, password in (("ada", "wrong one here"), ("ci", ""), ("ci", PASSWORD), ("none", PASSWORD), ("\0", "")):
        with pytest.raises(CredentialRefusedError, match="do not belong together"):
            registry.operator_by_password(name, password)
    registry.set_password("ada", "another horse battery")
    with pytest.raises(CredentialRefusedError):
        registry.operator_by_password("ada", PASSWORD)
    assert registry.operator_by_password("ada", "another horse battery").has_password


def test_names_and_passwords_that_do_not_fit_are_refused(registry: Registry) -> None:
    for name in ("", "Ada", "a b", "-a", "a" * 65, "../x"):
        with pytest.raises(InvalidRecordError):
            registry.add_operator(name, role=Role.VIEWER)
    for password in ("short", "x" * 513):
        with pytest.raises(InvalidRecordError, match="10 to 512"):
            registry.add_operator("ada", role=Role.VIEWER, password=password)
    assert registry.operators() == ()


def test_a_name_is_never_given_to_somebody_else(registry: Registry) -> None:
    registry.add_operator("ada", role=Role.VIEWER)
    registry.remove_operator("ada")
    with pytest.raises(ConflictError, match="Choose another name"):
        registry.add_operator("ada", role=Role.ADMIN)
    with pytest.raises(NotFoundError):
        registry.set_password("ada", PASSWORD)
    with pytest.raises(NotFoundError):
        registry.create_operator_token("ada", label="x", valid_for=HOUR)


def test_tokens_expire_and_are_revoked(registry: Registry, clock: Clock) -> None:
    registry.add_operator("ci", role=Role.PUBLISHER)
    token, record = registry.create_operator_token("ci", label="ci", valid_for=HOUR)
    assert token.startswith(f"{record.token_id}.")
    found = registry.usable_operator_token(record.token_id)
    assert found is not None
    assert found[0].role is Role.PUBLISHER
    assert found[1].startswith("$argon2id$")
    clock.advance(minutes=60)
    assert registry.usable_operator_token(record.token_id) is None
    _, other = registry.create_operator_token("ci", label="ci", valid_for=HOUR)
    assert registry.revoke_operator_token(other.token_id).revoked_at == clock()
    assert registry.usable_operator_token(other.token_id) is None
    assert [t.token_id for t in registry.operator_tokens()] == [other.token_id, record.token_id]
    with pytest.raises(NotFoundError):
        registry.revoke_operator_token("none")
    for label in ("", "x" * 65, "a\nb"):
        with pytest.raises(InvalidRecordError):
            registry.create_operator_token("ci", label=label, valid_for=HOUR)


def test_sessions_end_with_time_logout_password_and_account(registry: Registry, clock: Clock) -> None:
    registry.add_operator("ada", role=Role.VIEWER, password=PASSWORD)
    first, second = (registry.start_session("ada", valid_for=HOUR) for _ in range(2))
    owner = registry.session_operator(first)
    assert owner is not None
    assert owner.name == "ada"
    registry.end_session(first)
    assert registry.session_operator(first) is None
    assert registry.session_operator(second) is not None
    clock.advance(minutes=60)
    assert registry.session_operator(second) is None
    third = registry.start_session("ada", valid_for=HOUR)
    registry.set_password("ada", "another horse battery")
    assert registry.session_operator(third) is None
    fourth = registry.start_session("ada", valid_for=HOUR)
    registry.remove_operator("ada")
    assert registry.session_operator(fourth) is None


def test_no_secret_is_in_the_tables(registry: Registry) -> None:
    registry.add_operator("ada", role=Role.VIEWER, password=PASSWORD)
    token, _ = registry.create_operator_token("ada", label="x", valid_for=HOUR)
    cookie = registry.start_session("ada", valid_for=HOUR)
    stored = dump(registry)
    assert "argon2id" in stored
    assert not [secret for secret in (PASSWORD, token.partition(".")[2], cookie) if secret in stored]


def note(registry: Registry, subject: str) -> None:
    registry.record_audit(actor="ada", via="rest", action="device.revoke", subject=subject, outcome="done")


def test_the_audit_log_is_paged_and_chained(registry: Registry) -> None:
    assert registry.verify_audit() == (0, "0" * 64)
    for number in range(5):
        note(registry, f"device {number}\x1b[0m")
    newest = registry.audit_log(limit=2)
    assert [entry.position for entry in newest] == [5, 4]
    assert [entry.position for entry in registry.audit_log(before=newest[-1].position)] == [3, 2, 1]
    assert newest[0].previous == newest[1].digest
    assert "\x1b" not in newest[0].subject
    assert registry.verify_audit() == (5, newest[0].digest)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_log SET actor = 'eve' WHERE position = 2",
        "DELETE FROM audit_log WHERE position = 2",
        "UPDATE audit_log SET outcome = 'failed' WHERE position = 3",
    ],
)
def test_a_changed_audit_log_shows(registry: Registry, change: str) -> None:
    for number in range(3):
        note(registry, str(number))
    with registry._connection() as connection:
        connection.execute(text(change))
    with pytest.raises(DatabaseError, match="was changed at or before entry"):
        registry.verify_audit()


def test_entries_written_at_once_all_stay_in_one_chain(any_settings: Settings) -> None:
    first, second = Registry.open(any_settings), Registry.open(any_settings)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: note(first if number % 2 else second, str(number)), range(40)))
    assert first.verify_audit()[0] == 40
    first.close()
    second.close()


def test_a_counted_token_enrols_so_many_devices_and_no_more(registry: Registry, clock: Clock) -> None:
    registry.add_candidate(make_manifest())
    token, record = registry.create_enrolment_token("tiny", valid_for=HOUR, uses=3)
    assert (record.max_uses, record.uses) == (3, 0)
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda number: _try_to_enrol(registry, token, number), range(6)))
    assert sorted(done) == [False] * 3 + [True] * 3
    assert registry.enrolment_tokens()[0].uses == 3
    other, record = registry.create_enrolment_token("tiny", valid_for=HOUR, uses=3)
    registry.enrol(other, name="first")
    revoked = registry.revoke_enrolment_token(record.token_id)
    assert (revoked.revoked_at, revoked.uses) == (clock(), 1)
    assert not _try_to_enrol(registry, other, 2)
    with pytest.raises(NotFoundError):
        registry.revoke_enrolment_token(99)


def _try_to_enrol(registry: Registry, token: str, number: int) -> bool:
    try:
        registry.enrol(token, name=f"device-{number}")
    except EnrolmentRefusedError:
        return False
    return True


def test_tokens_from_before_counting_keep_what_they_were(any_settings: Settings) -> None:
    registry = Registry.open(any_settings)
    registry.add_candidate(make_manifest())
    used, _ = registry.create_enrolment_token("tiny", valid_for=HOUR)
    unused, _ = registry.create_enrolment_token("tiny", valid_for=HOUR)
    registry.enrol(used, name="before")
    with registry._connection() as connection:
        downgrade(connection, "0004")
    registry.close()
    again = Registry.open(any_settings)
    assert [(t.max_uses, t.uses) for t in again.enrolment_tokens()] == [(1, 1), (1, 0)]
    assert not _try_to_enrol(again, used, 1)
    assert _try_to_enrol(again, unused, 1)
    again.close()


def _cut_off(*_arguments: object, **_named: object) -> None:
    raise DatabaseError("the database went away")


def test_an_action_and_its_entry_are_there_together_or_not_at_all(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Caller(name="ada", role=Role.ADMIN, via="api")
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(registry, "record_audit", _cut_off)
        with pytest.raises(DatabaseError), audited(registry, caller, "operator.add", "eve"):
            registry.add_operator("eve", role=Role.VIEWER, password=PASSWORD)
    assert "eve" not in {operator.name for operator in registry.operators()}
    assert registry.audit_log() == ()
    with audited(registry, caller, "operator.add", "eve"):
        registry.add_operator("eve", role=Role.VIEWER, password=PASSWORD)
    assert "eve" in {operator.name for operator in registry.operators()}
    assert [entry.outcome for entry in registry.audit_log()] == ["done"]


def test_what_fails_in_the_middle_leaves_its_reason_and_nothing_else(registry: Registry) -> None:
    caller = Caller(name="ada", role=Role.ADMIN, via="api")
    registry.add_operator("eve", role=Role.VIEWER, password=PASSWORD)

    def both() -> None:
        with audited(registry, caller, "operator.add", "bob and eve"):
            registry.add_operator("bob", role=Role.VIEWER, password=PASSWORD)
            registry.add_operator("eve", role=Role.VIEWER, password=PASSWORD)

    with pytest.raises(ConflictError):
        both()
    assert {operator.name for operator in registry.operators()} == {"eve"}
    (entry,) = registry.audit_log()
    assert entry.outcome.startswith("failed: ")
    # Who catches a refusal inside goes on, and keeps what was done before.
    with audited(registry, caller, "operator.add", "bob, perhaps eve"):
        registry.add_operator("bob", role=Role.VIEWER, password=PASSWORD)
        with contextlib.suppress(ConflictError):
            registry.add_operator("eve", role=Role.VIEWER, password=PASSWORD)
    assert {operator.name for operator in registry.operators()} == {"bob", "eve"}
    assert registry.verify_audit()[0] == 2


def test_nobody_else_sees_half_of_what_is_done_together(registry: Registry) -> None:
    def names_elsewhere() -> set[str]:
        with ThreadPoolExecutor(1) as other:
            return {operator.name for operator in other.submit(registry.operators).result()}

    with registry.together():
        registry.add_operator("eve", role=Role.VIEWER, password=PASSWORD)
        assert {operator.name for operator in registry.operators()} == {"eve"}
        assert names_elsewhere() == set()
        with pytest.raises(RuntimeError), registry.together():
            pass
    assert names_elsewhere() == {"eve"}
