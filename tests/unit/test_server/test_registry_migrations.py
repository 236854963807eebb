import multiprocessing
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from simulators.postgresql import PostgresServer
from simulators.server_home import make_event, make_manifest, make_user_event, release
from sqlalchemy import inspect

from delta_updates import Outcome, OutcomeReport
from server.config import Settings
from server.errors import DatabaseError
from server.registry import Registry
from server.registry.migrations import downgrade, upgrade
from server.registry.tables import Base

_IN_2027 = datetime(2027, 5, 1, tzinfo=UTC)


def test_the_migrations_make_exactly_the_tables(registry: Registry) -> None:
    with registry._connection() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    assert differences == []


def test_the_migrations_go_down_and_up_again(registry: Registry) -> None:
    with registry._connection() as connection:
        downgrade(connection, "base")
    assert set(inspect(registry._engine).get_table_names()) == {"alembic_version"}
    with registry._connection() as connection:
        upgrade(connection)
    assert set(inspect(registry._engine).get_table_names()) == {"alembic_version", *Base.metadata.tables}
    assert registry.add_candidate(make_manifest()).number == 1


def test_events_from_before_chains_are_chained_as_new_ones_are(registry: Registry) -> None:
    version = registry.add_candidate(make_manifest())
    for name in ("one", "two"):
        registry.create_run(
            name,
            model=version.model,
            recipe={},
            base_version=1,
            base_hash=version.manifest.base_hash,
            parent_version=None,
        )
    for name, server_round in (("one", 1), ("two", 1), ("one", 2)):
        registry.record_round(
            name,
            server_round,
            status="released",
            replies=1,
            failures={},
            held_out_loss=None,
            events=[make_event(name, server_round), make_user_event(name, server_round, "a", "b")],
            artifacts={},
            facts={},
        )
    heads = registry.verify_privacy_chain(version.model)
    assert len(heads) == 6
    with registry._connection() as connection:
        downgrade(connection, "0007")
        upgrade(connection)
    assert registry.verify_privacy_chain(version.model) == heads
    assert len(registry.privacy_events(model=version.model, privacy_unit="user")) == 3


def test_opening_again_keeps_what_is_there(any_settings: Settings) -> None:
    first = Registry.open(any_settings)
    first.add_candidate(make_manifest())
    first.close()
    second = Registry.open(any_settings)
    assert [version.number for version in second.versions("tiny")] == [1]
    second.close()


def test_versions_from_before_masters_have_none(any_settings: Settings) -> None:
    registry = Registry.open(any_settings)
    registry.add_candidate(make_manifest(), master_sha256="d" * 64)
    with registry._connection() as connection:
        downgrade(connection, "0001")
    registry.close()
    again = Registry.open(any_settings)
    assert [version.master_sha256 for version in again.versions("tiny")] == [None]
    second = again.add_candidate(make_manifest(kind="adapter", parent=1, adapter="b"), master_sha256="e" * 64)
    assert again.version("tiny", second.number).master_sha256 == "e" * 64
    again.close()


def _open(settings: Settings) -> None:
    Registry.open(settings).close()


def test_processes_and_threads_that_open_at_once_all_succeed(any_settings: Settings) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_open, args=(any_settings,)) for _ in range(3)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: _open(any_settings), range(3)))
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_newer_releases_database_is_refused(any_settings: Settings) -> None:
    registry = Registry.open(any_settings)
    with registry._connection() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    registry.close()
    with pytest.raises(DatabaseError, match="Start the release that made it"):
        Registry.open(any_settings)


def test_a_migration_that_fails_changes_nothing(any_settings: Settings) -> None:
    registry = Registry.open(any_settings)

    def fail_after_downgrade() -> None:
        with registry._connection() as connection:
            downgrade(connection, "base")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_downgrade()
    assert registry.add_candidate(make_manifest()).number == 1
    registry.close()


@pytest.mark.slow
def test_reports_can_be_divided_as_the_page_on_large_fleets_says(postgres: PostgresServer, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")
    statements = page.partition("```sql\n")[2].partition("```")[0]
    registry = Registry.open(Settings(home=tmp_path, database_url=postgres.new_url()), now=lambda: _IN_2027)
    registry.add_candidate(make_manifest())
    release(registry, 1)
    token, _ = registry.create_enrolment_token("tiny", valid_for=timedelta(hours=1))
    device, _ = registry.enrol(token, name="device")

    def report(outcome: Outcome) -> None:
        offer = registry.record_offer(
            device.device_id, model="tiny", version=1, package_path="packages/tiny/1/full.lmpkg"
        )
        registry.record_outcome(
            device.device_id, OutcomeReport(offer_id=offer.offer_id, version=1, outcome=outcome, bytes_downloaded=1)
        )

    report(Outcome.DOWNLOADED)
    with registry._connection() as connection:
        for statement in re.sub(r"--.*|BEGIN;|COMMIT;", "", statements).split(";")[:-1]:
            connection.exec_driver_sql(statement)
    report(Outcome.DOWNLOADED)  # a repeated report is still harmless
    report(Outcome.CONFIRMED)
    assert {kept.outcome for kept in registry.reports(device.device_id)} == {"downloaded", "confirmed"}
    with registry._connection() as connection:
        in_2027 = connection.exec_driver_sql("SELECT count(*) FROM reports_2027").scalar_one()
    assert in_2027 == 2
    registry.close()
