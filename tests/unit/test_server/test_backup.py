"""The steps of docs/backup.md, done: what was saved is a service again, and the doctor finds nothing."""

import re
import shutil
import sqlite3
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from simulators.postgresql import PostgresServer, find_pg_bin
from simulators.server_home import MODEL, open_home
from simulators.update_api import Service

from server.upkeep import Workshop, examine

PAGE = Path(__file__).parents[3] / "docs" / "backup.md"
SAVED = ("artifacts", "keys", "metadata", "operator.token")


def save_home(home: Path, backup: Path) -> None:
    for name in SAVED:
        source = home / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, backup / name)


def require_whole(folder: Path, device: dict[str, str], **settings: object) -> None:
    """The restored service knows its device, serves its package, and nothing is amiss."""
    with Service(folder, **settings) as api:
        services = api.app.state.services
        shop = Workshop(
            settings=services.settings,
            registry=services.registry,
            artifacts=services.artifacts,
            metadata=services.metadata,
        )
        assert examine(shop) == ()
        offer = api.check(device, installed_version=1, installed_hash=api.hash_of(1)).json()
        package = api.client.get(f"/v1/targets/{offer['package']['path']}", headers=device)
        assert len(package.content) == offer["package"]["length"]
        # And it goes on: the next release is one.
        api.home.candidate(9, parent=offer["version"])
        assert api.home.publish(offer["version"] + 1).state == "released"


def released(folder: Path, **settings: object) -> dict[str, str]:
    """A service with three releases, and the headers of its device."""
    home = open_home(folder, **settings)
    home.release_three()
    home.registry.close()
    with Service(folder, **settings) as api:
        return api.enrol()


def lose(folder: Path) -> None:
    """The machine is gone; the operator's offline keys were elsewhere."""
    shutil.rmtree(folder / "home")


def bring_back(folder: Path, backup: Path) -> None:
    shutil.copytree(backup, folder / "home")
    (folder / "home").chmod(0o700)


def test_a_home_on_sqlite_is_restored(tmp_path: Path) -> None:
    folder, backup = tmp_path / "service", tmp_path / "backup"
    backup.mkdir()
    folder.mkdir()
    device = released(folder)
    with sqlite3.connect(folder / "home" / "registry.sqlite") as source:
        copy = sqlite3.connect(backup / "registry.sqlite")
        source.backup(copy)
        copy.close()
    source.close()
    save_home(folder / "home", backup)
    lose(folder)
    bring_back(folder, backup)
    require_whole(folder, device)


@pytest.mark.slow
def test_a_home_on_postgresql_is_restored(postgres: PostgresServer, tmp_path: Path) -> None:
    pg_bin = find_pg_bin()
    assert pg_bin is not None
    if not (pg_bin / "pg_dump").exists():
        pytest.skip("no pg_dump beside pg_ctl (Debian: apt-get install postgresql-client)")
    folder, backup, url = tmp_path / "service", tmp_path / "backup", postgres.new_url()
    backup.mkdir()
    folder.mkdir()
    device = released(folder, database_url=url)
    asked = parse_qs(urlsplit(url).query)
    schema = asked["options"][0].removeprefix("-csearch_path=")
    where = ["-h", asked["host"][0], "-U", "lamella", "-d", "postgres"]
    dump = ["pg_dump", *where, "--no-owner", "-n", schema, "-f", str(backup / "registry.sql")]
    subprocess.run([pg_bin / dump[0], *dump[1:]], check=True)
    save_home(folder / "home", backup)
    lose(folder)
    subprocess.run([pg_bin / "psql", *where, "-qc", f'DROP SCHEMA "{schema}" CASCADE'], check=True, capture_output=True)
    restore = [*where, "-q", "-v", "ON_ERROR_STOP=1", "-f", str(backup / "registry.sql")]
    subprocess.run([pg_bin / "psql", *restore], check=True, capture_output=True)
    bring_back(folder, backup)
    require_whole(folder, device, database_url=url)


def test_the_page_names_everything_that_has_to_be_saved() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not [name for name in (*SAVED, "registry.sqlite", "pg_dump", MODEL) if name not in page and name != MODEL]
    assert re.search(r"lamella doctor", page)
