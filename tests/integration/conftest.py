"""Real commands in real processes, on a tiny base made once for all of these tests."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.operator import Service

from model import DocstringSource, export_users


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An operator's home with a tiny base released as v1; copied for every test."""
    home = tmp_path_factory.mktemp("prepared") / "home"
    operator = Service(home)
    operator.init_trust()
    made = json.loads(operator.lamella("base", "pretrain", "--model", "chat", "--steps", "20", "--json"))
    assert (made["model"], made["version"]) == ("chat", 1)
    export_users(DocstringSource(), home / "text", users=2, held_out_users=2)
    return home


@pytest.fixture
def service(prepared_home: Path, tmp_path: Path) -> Iterator[Service]:
    """A service of its own, with v1 released."""
    for name in ("home", "home-offline"):
        shutil.copytree(prepared_home.with_name(name), tmp_path / name, symlinks=True)
    made = Service(tmp_path / "home")
    yield made
    made.close()
