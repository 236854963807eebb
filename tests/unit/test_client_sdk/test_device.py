"""The one door: enrolment, secrets, status, and what a light install imports."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from simulators.faulty_disk import FaultyDisk
from simulators.update_service import CREDENTIAL, DEVICE_ID, TOKEN, FakeUpdateService

import client_sdk
from client_sdk import (
    Device,
    DeviceDiskError,
    EnrolmentError,
    Limits,
    NothingInstalledError,
    ServiceRefusedError,
    ServiceUnavailableError,
    UpdateInProgressError,
)
from client_sdk.lock import update_lock

OpenDevice = Callable[..., Device]
HEAVY = ("flwr", "opacus", "fastapi", "sqlalchemy", "ray", "dp_accounting", "matplotlib", "transformers")


def test_every_exported_name_is_there() -> None:
    assert sorted(client_sdk.__all__) == client_sdk.__all__
    for name in client_sdk.__all__:
        assert hasattr(client_sdk, name)


def test_secrets_are_readable_by_this_user_only(service: FakeUpdateService, tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    status = Device(home).enroll(service.enrolment(tmp_path), name="kitchen")
    assert (status.device_id, status.name, status.version) == (DEVICE_ID, "kitchen", None)
    assert (home / "credential").read_text() == CREDENTIAL
    assert home.stat().st_mode & 0o077 == 0
    for path in home.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert TOKEN not in "".join(path.read_text() for path in home.iterdir() if path.is_file())


def test_a_device_is_enrolled_once(service: FakeUpdateService, tmp_path: Path) -> None:
    device = Device(tmp_path / "home")
    device.enroll(service.enrolment(tmp_path))
    with pytest.raises(EnrolmentError, match="already enrolled as 'device'"):
        device.enroll(service.enrolment(tmp_path))


def test_an_update_lock_also_keeps_enrolment_out(service: FakeUpdateService, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with update_lock(tmp_path / "home"), pytest.raises(UpdateInProgressError):
        Device(tmp_path / "home").enroll(service.enrolment(tmp_path))


def test_slots_of_another_model_are_not_taken_over(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    (tmp_path / "home" / "state.json").unlink()
    service.model = "other"
    with pytest.raises(EnrolmentError, match="holds a version of 'tiny'"):
        open_device()


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb"])
def test_names_are_short_and_printable(service: FakeUpdateService, tmp_path: Path, name: str) -> None:
    with pytest.raises(EnrolmentError, match="cannot be a device's name"):
        Device(tmp_path / "home").enroll(service.enrolment(tmp_path), name=name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"token": "used-up-token-0002"}, r"403: the token is used up"),
        ({"token": "spaces are not allowed"}, "problem with token"),
        ({"root": {}}, "not valid root metadata"),
        ({"server_url": "http://updates.example.org"}, "--allow-http"),
        ({"extra": 1}, "problem with extra"),
    ],
)
def test_a_bad_enrolment_file_is_told_and_leaves_nothing(
    service: FakeUpdateService, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    path = service.enrolment(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((EnrolmentError, ServiceRefusedError), match=says) as caught:
        Device(tmp_path / "home").enroll(path)
    assert TOKEN not in str(caught.value)
    with pytest.raises(EnrolmentError, match="No device is enrolled"):
        Device(tmp_path / "home").status()


def test_a_root_that_does_not_sign_itself_is_refused(service: FakeUpdateService, tmp_path: Path) -> None:
    path = service.enrolment(tmp_path)
    file = json.loads(path.read_text())
    file["root"]["signed"]["version"] = 9
    path.write_text(json.dumps(file))
    with pytest.raises(EnrolmentError, match="not valid root metadata"):
        Device(tmp_path / "home").enroll(path)
    assert service.requests == []


@pytest.mark.parametrize("raw", [b"", b"not json", b"[]", b"\xff\xfe"])
def test_what_is_no_enrolment_file(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(EnrolmentError, match="is not an enrolment file"):
        Device(tmp_path / "home").enroll(tmp_path / "file")
    with pytest.raises(EnrolmentError, match="cannot be read"):
        Device(tmp_path / "home").enroll(tmp_path / "missing")


def test_a_full_disk_at_enrolment(service: FakeUpdateService, tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path / "stash", space_bytes=100)
    with pytest.raises(DeviceDiskError, match="became full while storing the enrolment"):
        Device(tmp_path / "home", disk=disk).enroll(service.enrolment(tmp_path))


def test_the_service_is_away_at_enrolment_and_asked_once(service: FakeUpdateService, tmp_path: Path) -> None:
    path = service.enrolment(tmp_path)
    path.write_text(path.read_text().replace(service.address, "http://127.0.0.1:9"))
    with pytest.raises(ServiceUnavailableError, match="does not answer"):
        Device(tmp_path / "home", limits=Limits(connect_timeout_s=1.0)).enroll(path)


@pytest.mark.parametrize("raw", [b"", b"{}", b"nonsense", b'{"format": 2}'])
def test_a_damaged_state_file_is_told(
    service: FakeUpdateService, tmp_path: Path, open_device: OpenDevice, raw: bytes
) -> None:
    device: Device = open_device()
    (tmp_path / "home" / "state.json").write_bytes(raw)
    with pytest.raises(DeviceDiskError, match=r"is damaged.*enrol this device again"):
        device.status()


def test_nothing_to_run_before_the_first_update(service: FakeUpdateService, open_device: OpenDevice) -> None:
    with pytest.raises(NothingInstalledError, match="lamella-device update"):
        open_device().active()
    with pytest.raises(NothingInstalledError, match="lamella-device update"):
        open_device().generate("hello")


def test_a_missing_pinned_root_ends_all_trust(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device: Device = open_device()
    (tmp_path / "home" / "trust" / "pinned_root").unlink()
    with pytest.raises(EnrolmentError, match="trusts no one"):
        device.update()


def test_status_has_no_secret(service: FakeUpdateService, v1: Path, open_device: OpenDevice) -> None:
    open_device().update()
    assert CREDENTIAL not in repr(open_device().status())


def test_many_threads_update_one_at_a_time(service: FakeUpdateService, v1: Path, open_device: OpenDevice) -> None:
    open_device()
    outcomes: list[str] = []

    def update() -> None:
        try:
            outcomes.append(open_device().update().decision)
        except UpdateInProgressError:
            outcomes.append("busy")

    threads = [threading.Thread(target=update) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("confirmed") == 1
    assert len(service.package_requests()) == 1


@pytest.mark.slow
def test_updating_and_generating_import_nothing_of_the_heavy_extras(tmp_path: Path) -> None:
    """In a fresh process, with a real model: enrol, update with the real self-test, generate, chat, command line."""
    script = Path(__file__).with_name("light_device.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *HEAVY], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["confirmed", "confirmed", "imported:"]
