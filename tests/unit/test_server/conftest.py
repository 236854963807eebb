from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.postgresql import WHY_SKIPPED, PostgresServer, find_pg_bin, running_postgres
from simulators.server_home import Clock, Home, open_home

from server.config import Settings
from server.registry import Registry


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LAMELLA_{name.upper()}", raising=False)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    opened = open_home(tmp_path)
    yield opened
    opened.registry.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    pg_bin = find_pg_bin()
    if pg_bin is None:
        pytest.skip(WHY_SKIPPED)
    with running_postgres(pg_bin) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def any_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings on each database; PostgreSQL with a new, empty schema."""
    if request.param == "sqlite":
        return Settings(home=tmp_path / "home")
    server: PostgresServer = request.getfixturevalue("postgres")
    return Settings(home=tmp_path / "home", database_url=server.new_url())


@pytest.fixture
def registry(any_settings: Settings, clock: Clock) -> Iterator[Registry]:
    opened = Registry.open(any_settings, now=clock)
    yield opened
    opened.close()


@pytest.fixture
def home_settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")
