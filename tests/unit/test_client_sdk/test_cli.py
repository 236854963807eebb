"""`lamella-device`: what people and programs see."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from simulators.update_service import CREDENTIAL, DEVICE_ID, FakeUpdateService
from simulators.versions import write_tree

from client_sdk import Device, UpdateResult, cli
from client_sdk.agent import Polled, describe, run_agent
from client_sdk.errors import EnrolmentError, ServiceUnavailableError

Run = Callable[..., int]
OpenDevice = Callable[..., Device]


@pytest.fixture
def lamella_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("LAMELLA_DEVICE_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lamella-device", *arguments])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        return int(leave.value.code or 0)

    return run


def test_enrol_check_status(
    service: FakeUpdateService, v1: Path, tmp_path: Path, lamella_device: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lamella_device("enroll", str(service.enrolment(tmp_path)), "--name", "kitchen") == 0
    assert f"Enrolled as kitchen ({DEVICE_ID}) for tiny" in capsys.readouterr().out
    assert lamella_device("check") == 0
    assert "v1 is offered: a full package of" in capsys.readouterr().out
    assert lamella_device("check", "--json") == 0
    assert json.loads(capsys.readouterr().out)["version"] == 1
    assert lamella_device("status") == 0
    assert "highest version" in capsys.readouterr().out
    assert lamella_device("status", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["version"], facts["name"]) == ("tiny", None, "kitchen")
    assert CREDENTIAL not in json.dumps(facts)


def test_update_prints_json_alone_and_a_failed_self_test_exits_1(
    service: FakeUpdateService, v1: Path, tmp_path: Path, lamella_device: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    lamella_device("enroll", str(service.enrolment(tmp_path)))
    capsys.readouterr()
    # The weights of these versions are no model: the real self-test refuses them.
    assert lamella_device("update", "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["decision"], result["to_version"], result["package"]) == ("reverted", 1, "full")
    assert lamella_device("update") == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: The service offers v1")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status",), "No device is enrolled in"),
        (("update",), "No device is enrolled in"),
        (("generate", "hello"), "No version is installed yet"),
        (("enroll", "missing.json"), "cannot be read"),
        (("train", "--superlink", "127.0.0.1:1"), "No device is enrolled in"),
        (("agent",), "No device is enrolled in"),
    ],
)
def test_an_error_is_one_sentence_and_exit_code_1(
    lamella_device: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert lamella_device(*arguments) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_a_home_that_cannot_be_made(
    tmp_path: Path, service: FakeUpdateService, lamella_device: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert lamella_device("enroll", str(service.enrolment(tmp_path)), "--home", str(tmp_path / "file" / "home")) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_wrong_usage_exits_2(lamella_device: Run) -> None:
    assert lamella_device("update", "--no-such-option") == 2
    assert lamella_device("--help") == 0


def test_what_people_read_about_an_update() -> None:
    confirmed = UpdateResult(
        decision="confirmed",
        from_version=1,
        to_version=2,
        package="delta",
        package_bytes=1_500_000,
        download_seconds=2.0,
        apply_seconds=0.5,
    )
    assert describe(confirmed) == (
        "v1 -> v2 confirmed (delta package of 1.50 MB, downloaded in 2.0 s, applied in 0.5 s)"
    )
    reverted = UpdateResult(decision="reverted", from_version=1, to_version=2, reason="No.")
    assert describe(reverted) == "v2 failed its self-test: No. v1 serves on."
    assert describe(UpdateResult(decision="up_to_date", from_version=3, to_version=3)) == "up to date at v3"


class _Stop(Exception):  # noqa: N818 - ends the agent's endless loop
    pass


@pytest.fixture
def keep_signals() -> object:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def waits_of(device: object, count: int, **options: float) -> list[float]:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == count:
            raise _Stop

    with pytest.raises(_Stop):
        run_agent(device, sleep=sleep, **options)  # type: ignore[arg-type]
    return waits


@pytest.mark.usefixtures("keep_signals")
def test_the_agent_polls_with_jitter_and_backs_off(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    waits = waits_of(open_device(), 20, interval_s=100.0, jitter=0.2)
    assert all(80.0 <= wait <= 120.0 for wait in waits)
    assert len(set(waits)) > 10
    service.answers[:] = [500] * 3 * 7
    assert waits_of(open_device(), 8, interval_s=100.0, jitter=0.0) == [200, 400, 800, 1600, 3200, 3200, 3200, 100]


@pytest.mark.usefixtures("keep_signals")
def test_a_service_that_asks_to_be_left_alone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def update() -> None:
        raise ServiceUnavailableError("busy", retry_after_s=900.0)

    device = SimpleNamespace(
        status=lambda: SimpleNamespace(name="kitchen"),
        config=lambda: SimpleNamespace(scrub_interval_s=None),
        update=update,
    )
    waits = waits_of(device, 40, interval_s=100.0, jitter=0.2)
    assert all(900.0 <= wait <= 1080.0 for wait in waits[:3])
    assert len(set(waits[:3])) == 3  # a whole fleet was told the same
    assert max(waits) > 2000.0  # its own patience grows as well


@pytest.mark.usefixtures("keep_signals")
def test_a_refused_offer_does_not_slow_the_agent_down(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    service.publish(write_tree(tmp_path / "v2", base_seed=1), version=2)
    open_device().update()
    service.answers[:] = [service.offer(1)] * 3
    assert waits_of(open_device(), 3, interval_s=100.0, jitter=0.0) == [100, 100, 100]


@pytest.mark.usefixtures("keep_signals")
def test_the_agent_ends_when_the_device_is_not_enrolled_any_more(
    service: FakeUpdateService, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device()
    (tmp_path / "home" / "credential").write_text("another-credential-1")
    with pytest.raises(EnrolmentError):
        waits_of(open_device(), 3, interval_s=1.0, jitter=0.0)


@pytest.mark.usefixtures("keep_signals")
def test_a_signal_that_python_drops_ends_the_agent_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropping:
        """What a signal's handler raises while a destructor runs is reported, and dropped."""

        def __del__(self) -> None:
            with contextlib.suppress(SystemExit):
                signal.raise_signal(signal.SIGTERM)

    def never(_seconds: float) -> None:
        raise AssertionError("it slept although it was told to stop")

    device = SimpleNamespace(
        status=lambda: SimpleNamespace(name="kitchen"), config=lambda: SimpleNamespace(scrub_interval_s=None)
    )
    monkeypatch.setattr("client_sdk.agent.poll", lambda _device: Polled(is_well=bool(Dropping())))
    with pytest.raises(SystemExit) as ended:
        run_agent(device, interval_s=1.0, jitter=0.0, sleep=never)  # type: ignore[arg-type]
    assert ended.value.code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_ends_cleanly(
    service: FakeUpdateService, tmp_path: Path, open_device: OpenDevice, number: signal.Signals
) -> None:
    open_device()
    process = subprocess.Popen(
        [sys.executable, "-m", "client_sdk.cli", "agent", "--interval-s", "3600", "--home", str(tmp_path / "home")],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stderr is not None
    lines = [process.stderr.readline(), process.stderr.readline()]
    process.send_signal(number)
    rest = process.communicate(timeout=30)[1]
    assert process.returncode == 0, rest
    assert "keeping kitchen up to date" in lines[0]
    assert "nothing is offered" in lines[1]
    assert "stopped by" in rest
    assert "Traceback" not in rest
