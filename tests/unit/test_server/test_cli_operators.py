import json
from pathlib import Path
from typing import Any

import pytest
from simulators.server_home import MODEL, open_home
from typer.testing import CliRunner

from server.cli.main import app
from server.errors import ServerError
from server.registry import Registry

PASSWORD = "correct horse battery"


class Terminal:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runner = CliRunner()

    def __call__(self, *words: str, fails: bool = False) -> str:
        done = self.runner.invoke(app, [*words])
        assert (done.exit_code != 0) == fails, (done.output, done.exception)
        return str(done.exception) if fails else done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))

    def password_file(self) -> str:
        file = self.folder / "password"
        file.touch(mode=0o600)
        file.write_text(PASSWORD + "\n")
        return str(file)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("LAMELLA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LAMELLA_OFFLINE_KEYS", str(tmp_path / "offline-keys"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LOGNAME", "grace")
    return Terminal(tmp_path)


def test_an_operator_is_made_listed_given_a_token_and_removed(terminal: Terminal) -> None:
    made = terminal.json("operators", "add", "ada", "--role", "publisher", "--password-file", terminal.password_file())
    assert (made["name"], made["role"], made["has_password"]) == ("ada", "publisher", True)
    token = terminal.json("operators", "token", "create", "ada", "--label", "ci", "--days", "1")
    assert token["token"].startswith(token["token_id"] + ".")
    assert terminal.json("operators", "token", "list")[0]["revoked_at"] is None
    assert terminal.json("operators", "token", "revoke", token["token_id"])["revoked_at"]
    terminal("operators", "passwd", "ada", "--password-file", terminal.password_file())
    assert terminal.json("operators", "remove", "ada")["removed_at"]
    assert [(o["name"], o["has_password"]) for o in terminal.json("operators", "list")] == [("ada", False)]
    log = terminal.json("audit", "list")
    assert [(entry["action"], entry["outcome"]) for entry in reversed(log)] == [
        ("operator.add", "done"),
        ("token.create", "done"),
        ("token.revoke", "done"),
        ("operator.passwd", "done"),
        ("operator.remove", "done"),
    ]
    assert {(entry["actor"], entry["via"]) for entry in log} == {("grace", "cli")}
    assert not [secret for secret in (PASSWORD, token["token"].partition(".")[2]) if secret in str(log)]
    assert terminal.json("audit", "verify")["entries"] == 5


def test_people_read_tables(terminal: Terminal) -> None:
    assert "is a viewer now" in terminal("operators", "add", "ci", "--role", "viewer", "--no-password")
    shown = terminal("operators", "token", "create", "ci", "--label", "nightly")
    assert "Shown this once" in shown
    assert "viewer" in terminal("operators", "list")
    assert "nightly" in terminal("operators", "token", "list")
    assert "operator.add" in terminal("audit", "list")
    assert "2 entries, none changed" in terminal("audit", "verify")


def test_what_fails_is_written_down_too(terminal: Terminal) -> None:
    assert "There is no operator" in terminal("operators", "remove", "nobody", fails=True)
    (entry,) = terminal.json("audit", "list")
    assert entry["outcome"].startswith("failed: There is no operator 'nobody'")
    assert "mode 0600" in terminal("operators", "add", "ada", "--role", "admin", fails=True)


def test_invitations_are_counted_listed_and_taken_back(terminal: Terminal) -> None:
    home = open_home(terminal.folder)
    home.base()
    home.publish(1, loss=None)
    home.registry.close()
    out = terminal.folder / "invitation.json"
    assert "for 5 devices" in terminal("devices", "invite", "--model", MODEL, "--uses", "5", "--out", str(out))
    token = json.loads(out.read_text())["token"]
    registry = Registry.open(home.settings)
    device, _ = registry.enrol(token, name="kitchen")
    assert "1 of 5" in terminal("devices", "invitations")
    assert "used 1 times" in terminal("devices", "uninvite", "1")
    with pytest.raises(ServerError):
        registry.enrol(token, name="late")
    terminal("devices", "revoke", device.device_id)
    (listed,) = terminal.json("devices", "invitations")
    assert (listed["uses"], listed["max_uses"], listed["revoked_at"] is None) == (1, 5, False)
    actions = [entry.action for entry in registry.audit_log()]
    assert actions == ["device.revoke", "enrolment.revoke", "enrolment.create"]
    assert token not in str(registry.audit_log())
    registry.close()
