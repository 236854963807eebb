"""Joining a federation: what Flower's SuperNode is started with, and that it never outlives this process' wish."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace

import pytest

from client_sdk.errors import EnrolmentError, MissingExtraError, NothingInstalledError
from client_sdk.supernode import Membership, run_supernode

Handler = Callable[[int, FrameType | None], None]

# Stands in for `flower-supernode`: writes down how it was called, then ends or waits for a signal.
PROGRAM = """\
#!{python}
import json, os, signal, sys, time
with open({record!r}, "w") as file:
    json.dump({{"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}}, file)
{body}
"""
ENDS = "sys.exit(7)"
WAITS = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); open({ready!r}, 'w').close(); time.sleep(60)"


class FakeDevice:
    """A device whose updates do what the test says."""

    def __init__(self, home: Path, *, version: int | None = 1, update: Callable[[], None] = lambda: None) -> None:
        self.home = home
        self.version = version
        self.updates = 0
        self._update = update

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(version=self.version)

    def active(self) -> None:
        if self.version is None:
            raise NothingInstalledError("nothing")

    def update(self) -> SimpleNamespace:
        self.updates += 1
        self._update()
        return SimpleNamespace(decision="up_to_date", from_version=self.version, package=None, reason="")


class Supernode:
    """The stand-in program, beside a stand-in interpreter, which is where it is looked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._record, self.ready = folder / "record.json", folder / "ready"
        self._program = folder / "bin" / "flower-supernode"
        self._program.parent.mkdir()
        self._python = sys.executable
        monkeypatch.setattr("sys.executable", str(folder / "bin" / "python"))
        monkeypatch.setenv("PATH", "/nowhere")

    def install(self, body: str) -> None:
        body = body.format(ready=str(self.ready)) if body == WAITS else body
        self._program.write_text(PROGRAM.format(python=self._python, record=str(self._record), body=body))
        self._program.chmod(0o755)

    def called_with(self) -> dict[str, list[str] | dict[str, str]]:
        record: dict[str, list[str] | dict[str, str]] = json.loads(self._record.read_text())
        return record


@pytest.fixture
def supernode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supernode:
    return Supernode(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(path: Path) -> None:
    import time

    give_up = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_it_is_told_who_trains_on_what_and_stays_inside_the_home(supernode: Supernode, tmp_path: Path) -> None:
    supernode.install(ENDS)
    membership = Membership(
        superlink="gateway:9443",
        data="jsonl:/my data",
        user="ada",
        root_certificates=Path("/ca.crt"),
        private_key=Path("/node.key"),
        port=9094,
    )

    status = run_supernode(FakeDevice(tmp_path / "home"), membership, interval_s=60)  # type: ignore[arg-type]

    called = supernode.called_with()
    arguments, environment = called["arguments"], called["environment"]
    assert status == 7
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert options.pop("--node-config") == f'home="{tmp_path / "home"}" data="jsonl:/my data" user="ada"'
    assert options == {
        "--superlink": "gateway:9443",
        "--port": "9094",
        "--root-certificates": "/ca.crt",
        "--auth-supernode-private-key": "/node.key",
    }
    assert environment["FLWR_HOME"] == str(tmp_path / "home" / "flower")
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_flower_reads_the_node_config_back(supernode: Supernode, tmp_path: Path) -> None:
    from flwr.common.config import parse_config_args

    supernode.install(ENDS)
    run_supernode(FakeDevice(tmp_path / "a home"), Membership(superlink="h:1"), interval_s=60)  # type: ignore[arg-type]
    arguments = supernode.called_with()["arguments"]
    assert isinstance(arguments, list)

    assert parse_config_args([arguments[arguments.index("--node-config") + 1]]) == {"home": str(tmp_path / "a home")}
    assert "--insecure" in arguments
    trusting = Membership(superlink="h:1", trusts_server=True, requires_secure_aggregation=True)
    run_supernode(FakeDevice(tmp_path / "b"), trusting, interval_s=60)  # type: ignore[arg-type]
    arguments = supernode.called_with()["arguments"]
    assert isinstance(arguments, list)
    told = parse_config_args([arguments[arguments.index("--node-config") + 1]])
    assert told == {"home": str(tmp_path / "b"), "trust-server": True, "require-secure-aggregation": True}


def test_a_device_with_nothing_installed_updates_first(supernode: Supernode, tmp_path: Path) -> None:
    supernode.install(ENDS)
    device = FakeDevice(tmp_path, version=None)
    device._update = lambda: setattr(device, "version", 1)

    assert run_supernode(device, Membership(superlink="h:1"), interval_s=60) == 7  # type: ignore[arg-type]
    assert device.updates == 1


def test_without_a_version_nothing_is_started(supernode: Supernode, tmp_path: Path) -> None:
    supernode.install(ENDS)

    with pytest.raises(NothingInstalledError):
        run_supernode(FakeDevice(tmp_path, version=None), Membership(superlink="h:1"), interval_s=60)  # type: ignore[arg-type]
    assert not (tmp_path / "record.json").exists()


def test_it_looks_for_updates_meanwhile_and_passes_a_stop_on(supernode: Supernode, tmp_path: Path) -> None:
    supernode.install(WAITS)

    def stop_at_the_third_look() -> None:
        if device.updates == 3:
            wait_for(supernode.ready)
            handler = signal.getsignal(signal.SIGTERM)
            assert callable(handler)
            handler(signal.SIGTERM, None)

    device = FakeDevice(tmp_path, update=stop_at_the_third_look)

    assert run_supernode(device, Membership(superlink="h:1"), interval_s=0.01) == 5  # type: ignore[arg-type]
    assert device.updates >= 3


def test_a_revoked_device_stops_taking_part(supernode: Supernode, tmp_path: Path) -> None:
    supernode.install(WAITS)

    def revoked() -> None:
        wait_for(supernode.ready)
        raise EnrolmentError("revoked")

    with pytest.raises(EnrolmentError):
        run_supernode(FakeDevice(tmp_path, update=revoked), Membership(superlink="h:1"), interval_s=0.01)  # type: ignore[arg-type]
    pid = supernode.called_with()["pid"]
    assert not Path(f"/proc/{pid}").exists()


def test_without_flower_it_says_what_to_install(supernode: Supernode, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"lamella\[federated\]"):
        run_supernode(FakeDevice(tmp_path), Membership(superlink="h:1"), interval_s=60)  # type: ignore[arg-type]
