"""`lamella rollout`, `channels`, `withdraw` and what `devices` knows about them, as an operator types it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.server_home import MODEL, PASSPHRASE, open_home
from typer.testing import CliRunner

from server.cli.main import app
from server.cli.rollout_options import launch_of
from server.errors import ConfigurationError, ConflictError, InvalidRecordError, NotFoundError
from server.registry import Registry
from server.rollouts import AT_ONCE

BETA = ("--model", MODEL, "--version", "3", "--channel", "beta")


@pytest.fixture
def registry(three_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A home with three releases, as the commands find it."""
    folder = tmp_path / "service"
    shutil.copytree(three_versions, folder)
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_bytes(PASSPHRASE + b"\n")
    monkeypatch.setenv("LAMELLA_HOME", str(folder / "home"))
    monkeypatch.setenv("LAMELLA_OFFLINE_KEYS", str(folder / "offline-keys"))
    monkeypatch.setenv("LAMELLA_PASSPHRASE_FILE", str(passphrase))
    monkeypatch.setenv("COLUMNS", "300")
    home = open_home(folder)
    yield home.registry
    home.registry.close()


def run(*arguments: object) -> str:
    """What a command prints, in one line; what it raises is raised here."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def enrol(registry: Registry, *, has: int) -> str:
    from datetime import timedelta

    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, _ = registry.enrol(token, name="kitchen")
    registry.record_check(device.device_id, installed_version=has, installed_hash=None)
    return device.device_id


def test_a_rollout_is_made_watched_and_stopped(registry: Registry) -> None:
    told = run(
        "rollout",
        "create",
        *BETA,
        "--rollout",
        "10%,50%",
        "--group",
        "pilot",
        "--soak",
        "4",
        "--max-loss-increase",
        "0.05",
    )
    assert told == f"Rollout 4, {MODEL} v3 for channel beta group pilot, phase 1 of 3 (10%), running: started"
    plan = registry.rollout(4).plan
    assert (plan.phases, plan.soak_hours, plan.quality[0].limit) == ((10, 50, 100), 4, 0.05)
    assert "soaks until" in run("rollout", "show", 4)
    assert "phase 2 of 3 (50%)" in run("rollout", "advance", 4, "--reason", "looks good")
    assert "paused" in run("rollout", "pause", 4)
    assert "running" in run("rollout", "resume", 4)
    assert "halted: too slow" in run("rollout", "halt", 4, "--reason", "too slow")
    with pytest.raises(ConflictError, match="A halt is for good"):
        run("rollout", "resume", 4)
    told = run("rollout", "show", 4)
    assert all(reason in told for reason in ("started", "looks good", "by hand: pause", "too slow"))
    assert "halted" in run("rollout", "list", "--state", "halted")


def test_programs_read_json(registry: Registry) -> None:
    made = json.loads(run("rollout", "create", *BETA, "--draft", "--json"))
    assert (made["state"], made["plan"]["channel"]) == ("draft", "beta")
    assert json.loads(run("rollout", "start", made["rollout_id"], "--json"))["state"] == "running"
    assert len(json.loads(run("rollout", "list", "--json"))) == 4
    shown = json.loads(run("rollout", "show", made["rollout_id"], "--json"))
    assert shown["progress"]["total"]["offered"] == 0
    assert [change["state"] for change in shown["changes"]] == ["draft", "running"]
    device_id = enrol(registry, has=2)
    explained = json.loads(run("devices", "explain", device_id, "--json"))
    assert (explained["explanation"]["version"], explained["policy"]["channel"]) == (3, "stable")
    assert json.loads(run("channels", "--model", MODEL, "--json"))[0]["version"] == 3


def test_at_once_is_what_happens_when_nothing_else_is_said() -> None:
    assert launch_of(phases=None, groups=None, tags=None) == AT_ONCE
    assert launch_of(phases="100%", groups=None, tags=None).state == "running"
    assert launch_of(phases="12.5, 50 ,100%", groups=None, tags=None).plan.phases == (12.5, 50, 100)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (("--rollout", "ten"), InvalidRecordError, "no phases"),
        (("--rollout", "50%,10%"), InvalidRecordError, "ascending"),
        (("--rollout", "0%"), InvalidRecordError, "greater than 0"),
        (("--soak", "4"), ConfigurationError, "--rollout 10%,50%"),
        (("--group", "no spaces"), InvalidRecordError, "groups"),
        (("--rollout", "10%", "--window", "10-12"), InvalidRecordError, "window"),
    ],
)
def test_wrong_options_are_told(
    registry: Registry, options: tuple[str, ...], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        run("rollout", "create", *BETA, *options)
    assert len(registry.rollouts()) == 3


def test_what_is_not_there_is_told(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="lamella versions"):
        run("rollout", "create", "--model", MODEL, "--version", 9)
    with pytest.raises(NotFoundError, match="lamella rollout list"):
        run("rollout", "halt", 9)
    with pytest.raises(NotFoundError, match="lamella devices list"):
        run("devices", "explain", "0" * 32)


def test_a_device_is_tagged_grouped_forced_and_explained(registry: Registry) -> None:
    device_id = enrol(registry, has=2)
    assert "gets v3" in run("devices", "explain", device_id)
    assert "tags a, b" in run("devices", "tag", device_id, "--add", "a", "--add", "b")
    assert "tags b" in run("devices", "tag", device_id, "--remove", "a")
    assert "group pilot" in run("devices", "group", device_id, "pilot")
    assert "no group" in run("devices", "group", device_id)
    assert "channel beta" in run("devices", "channel", device_id, "beta")
    assert "opted out" in run("devices", "opt-out", device_id)
    told = run("devices", "explain", device_id)
    assert "1. It is opted out of rollouts" in told
    assert "gets nothing new" in told
    assert "forced to v3" in run("devices", "force", device_id, "--version", 3)
    policy = json.loads(run("devices", "list", "--json"))[0]["policy"]
    assert (policy["channel"], policy["tags"]) == ("beta", ["b"])
    assert (policy["forced_version"], policy["is_opted_out"]) == (3, True)
    assert "An operator forced v3" in run("devices", "explain", device_id)
    assert "forced" not in run("devices", "force", device_id, "--clear")
    assert "opted out" not in run("devices", "opt-in", device_id)
    for wrong in (("tag", device_id), ("force", device_id), ("group", device_id, "a b")):
        with pytest.raises(ConfigurationError):
            run("devices", *wrong)


def test_a_release_is_withdrawn_and_older_contents_come_back(registry: Registry) -> None:
    device_id = enrol(registry, has=3)
    told = run("withdraw", "--model", MODEL, "--version", 3, "--reason", "wrong language")
    assert "v3 is withdrawn: wrong language. Channel stable: v2." in told
    assert "1 device(s) run it" in told
    assert "waits for a newer release" in run("devices", "explain", device_id)
    assert "was withdrawn" in run("channels", "--model", MODEL, "--history")
    told = run("rollout", "restore", "--model", MODEL, "--version", 2, "--rollout", "10%")
    assert "v4 has the contents of v2." in told
    assert "phase 1 of 2 (10%), running" in told
    assert registry.version(MODEL, 4).manifest.tree_hash == registry.version(MODEL, 2).manifest.tree_hash
    # It runs what was withdrawn, so it is among the first.
    assert "gets v4" in run("devices", "explain", device_id)
