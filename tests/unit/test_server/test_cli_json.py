"""Every command answers in JSON when it is asked to: alone on stdout, whatever it says to people meanwhile."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from simulators.server_home import MODEL, PASSPHRASE, open_home
from typer.testing import CliRunner

from model import DocstringSource
from server.cli.main import app


def commands(group: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    if not hasattr(group, "commands"):
        return [(path, group)]
    return [found for name, inner in group.commands.items() for found in commands(inner, (*path, name))]


EVERY = commands(typer.main.get_command(app))


@pytest.mark.parametrize(("path", "command"), EVERY, ids=[" ".join(path) for path, _ in EVERY])
def test_every_command_has_it(path: tuple[str, ...], command: click.Command) -> None:
    assert "--json" in [option for parameter in command.params for option in parameter.opts]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_bytes(PASSPHRASE + b"\n")
    monkeypatch.setenv("LAMELLA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LAMELLA_OFFLINE_KEYS", str(tmp_path / "offline-keys"))
    monkeypatch.setenv("LAMELLA_PASSPHRASE_FILE", str(passphrase))
    return tmp_path


def told(*arguments: object) -> Any:
    """The JSON that a command prints, and nothing else on stdout."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def test_the_ceremony_of_keys(place: Path) -> None:
    made = told("trust", "init", "--bins", "2")
    assert (made["root_keys"], made["root_threshold"], made["bins"]) == (3, 2, 2)
    public = told("trust", "key", "releases", "--keys", place / "holder")
    assert Path(public["public_key"]).is_file()
    rotated = told("trust", "rotate", "releases", "--with", public["public_key"])
    assert rotated["changes"]
    assert rotated["published"] == {}
    (missing,) = rotated["missing"]  # the holder's own signature
    assert public["keyid"][:8] in missing
    signed = told("trust", "sign", rotated["proposal"], "--keys", place / "holder")
    assert signed["missing"] == []
    assert "releases" in told("trust", "publish", rotated["proposal"])["published"]
    assert told("trust", "rotate", "snapshot")["published"]["root"] > 1
    assert told("trust", "renew") == {"changes": [], "missing": [], "proposal": None, "published": {}}
    assert told("keys", "show") == told("trust", "show")


def test_devices_and_their_invitations(place: Path) -> None:
    home = open_home(place)
    home.base()
    invited = told("devices", "invite", "--model", MODEL, "--out", place / "enrol.json", "--url", "https://x.example")
    assert (invited["model"], invited["uses"]) == (MODEL, 1)
    assert "token" not in invited  # the file alone holds it
    (number,) = [one["token_id"] for one in told("devices", "invitations")]
    assert told("devices", "uninvite", number)["revoked_at"]
    target = told("ddi", "target-token", "box-1", "--model", MODEL)
    assert target["token"]
    assert told("devices", "revoke", target["device_id"])["revoked_at"]
    gateway = told("ddi", "gateway-token", "--model", MODEL, "--devices", "5")
    assert (gateway["device_limit"], bool(gateway["token"])) == (5, True)
    assert told("ddi", "revoke-gateway", gateway["token_id"]) == {"token_id": gateway["token_id"], "revoked": True}


def test_files_for_flower(place: Path) -> None:
    made = told("superlink", "keys", "--out", place / "superlink", "--host", "localhost", "--nodes", "1")
    assert {"ca.crt", "ca.key", "localhost.crt", "node-1", "node-1.pub"} <= set(made["files"])
    pair = told("superlink", "node-key", place / "superlink" / "node-2")
    assert Path(pair["private_key"]).is_file()
    assert Path(pair["public_key"]).is_file()


def test_people_and_simulated_devices(place: Path) -> None:
    home = open_home(place)
    home.base()
    home.publish(1, loss=None)
    export = ("data", "export", "--data", "docstrings", "--out", place / "text", "--users", "2", "--held-out", "1")
    exported = told(*export)
    assert len(exported["users"]) == 2
    assert set(exported["users"]) <= set(DocstringSource().users())
    assert len(exported["held_out"]) == 1
    made = told("fleet", "make", "--model", MODEL, "--devices", "2", "--out", place / "f", "--data", exported["data"])
    assert (made["version"], len(made["users"])) == (1, 2)


def test_words_for_people_are_on_stderr_meanwhile_and_on_stdout_again_afterwards(place: Path) -> None:
    done = CliRunner().invoke(app, ["trust", "init", "--bins", "2", "--json"])
    assert "Make a backup now" in " ".join(done.stderr.split())
    assert json.loads(done.stdout)
    done = CliRunner().invoke(app, ["trust", "renew"])
    assert "Nothing has used up half" in done.stdout
