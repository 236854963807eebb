import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.postgresql import WHY_SKIPPED, PostgresServer, find_pg_bin, running_postgres
from simulators.s3 import CREDENTIALS, S3Server, find_moto, running_s3
from simulators.s3 import WHY_SKIPPED as WHY_NO_S3
from simulators.server_home import Clock, Home, open_home
from simulators.update_api import Service

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


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    program = find_moto()
    if program is None:
        pytest.skip(WHY_NO_S3)
    with running_s3(program) as server:
        yield server


@pytest.fixture
def s3_settings(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a new, empty bucket, and the credentials for it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return Settings(home=tmp_path / "home", artifacts_url=s3.new_url(), artifacts_endpoint=s3.address)


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


@pytest.fixture(scope="session")
def three_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home in which three versions are released; copied, never used itself."""
    folder = tmp_path_factory.mktemp("three-versions")
    home = open_home(folder)
    home.release_three()
    home.registry.close()
    return folder


@pytest.fixture(scope="session")
def shared_api(three_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same for all tests that only ask, or only enrol devices of their own."""
    folder = tmp_path_factory.mktemp("shared") / "service"
    shutil.copytree(three_versions, folder)
    with Service(folder) as service:
        yield service


@pytest.fixture
def api(three_versions: Path, tmp_path: Path) -> Iterator[Service]:
    """The API over a home with three released versions."""
    folder = tmp_path / "service"
    shutil.copytree(three_versions, folder)
    with Service(folder) as service:
        yield service
