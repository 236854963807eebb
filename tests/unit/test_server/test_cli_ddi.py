"""`lamella ddi`, as an operator types it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.server_home import MODEL, open_home
from typer.testing import CliRunner

from server.cli.main import app
from server.errors import ConfigurationError, CredentialRefusedError, NotFoundError
from server.registry import Registry


@pytest.fixture
def registry(three_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A home with three releases, as the commands find it."""
    folder = tmp_path / "service"
    shutil.copytree(three_versions, folder)
    monkeypatch.setenv("LAMELLA_HOME", str(folder / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    home = open_home(folder)
    yield home.registry
    home.registry.close()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["ddi", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_a_target_token_is_the_last_line_and_works(registry: Registry) -> None:
    token = run("target-token", "gate-7", "--model", MODEL).splitlines()[-1]
    controller = registry.target_by_token(MODEL, "gate-7", token)
    registry.set_attributes(controller.device.device_id, {"hw": "2"})
    assert "hw=2" in run("list")
    (listed,) = json.loads(run("list", "--json"))
    assert listed["controller_id"] == "gate-7"
    assert token not in json.dumps(listed)


def test_a_gateway_token_is_listed_and_revoked(registry: Registry) -> None:
    token = run("gateway-token", "--model", MODEL, "--devices", "3").splitlines()[-1]
    registry.target_by_gateway(MODEL, "node-1", token)
    assert "1 of 3" in run("gateway-tokens")
    assert json.loads(run("gateway-tokens", "--json"))[0]["device_limit"] == 3
    run("revoke-gateway", "1")
    assert "revoked" in run("gateway-tokens")
    with pytest.raises(CredentialRefusedError):
        registry.target_by_gateway(MODEL, "node-1", token)


@pytest.mark.usefixtures("registry")
def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigurationError, match="no controller id"):
        run("target-token", "gate 7", "--model", MODEL)
    with pytest.raises(NotFoundError, match="no model"):
        run("target-token", "gate-7", "--model", "other")
    with pytest.raises(NotFoundError, match="gateway token 9"):
        run("revoke-gateway", "9")
