"""The device's key: made at its enrolment, made known, replaced, and never without an identity that works."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from simulators.faulty_disk import FaultyDisk, Loses, PowerCut
from simulators.update_service import CREDENTIAL, FakeUpdateService

from client_sdk import Device, DeviceError, EnrolmentError
from client_sdk.identity import IDENTITY_HEADERS

OpenDevice = Callable[..., Device]


def shown(service: FakeUpdateService) -> set[str]:
    """How the last request said whose it is."""
    return {name for name in service.requests[-1][2] if name in IDENTITY_HEADERS}


def test_a_device_signs_from_its_enrolment_on(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice, tmp_path: Path
) -> None:
    service.protocol = 4
    assert open_device().update().decision == "confirmed"
    assert service.public_key is not None
    assert not (tmp_path / "home" / "credential").exists()
    assert (tmp_path / "home" / "device.key").stat().st_mode & 0o777 == 0o600
    assert all("Authorization" not in headers for _, path, headers in service.requests[2:]), service.requests
    assert service.outcomes()[-1] == (1, "confirmed")


def test_a_device_of_before_takes_a_key_at_its_next_check(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice, tmp_path: Path
) -> None:
    open_device().check()
    assert (tmp_path / "home" / "credential").read_text() == CREDENTIAL
    service.protocol = 4
    open_device().check()
    assert service.public_key is not None
    assert not (tmp_path / "home" / "credential").exists()
    open_device().check()
    assert shown(service) == {"Signature", "Signature-Input"}


def test_with_a_service_of_before_the_credential_serves(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice, tmp_path: Path
) -> None:
    device = open_device()
    assert device.update().decision == "confirmed"
    with pytest.raises(EnrolmentError, match="knows no keys"):
        device.rotate_key()
    assert device.check() is None
    assert not (tmp_path / "home" / "device.key.next").exists()


def test_an_old_key_works_no_more(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice, tmp_path: Path
) -> None:
    service.protocol = 4
    device = open_device()
    stolen = (tmp_path / "home" / "device.key").read_bytes()
    device.rotate_key()
    assert device.check() is not None
    (tmp_path / "home" / "device.key").write_bytes(stolen)
    with pytest.raises(EnrolmentError, match="401"):
        device.check()


def test_an_answer_that_is_lost_leaves_the_device_known(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    service.protocol = 4
    service.lost_key_answers = 100
    device = open_device()  # the service has the key, and the device does not know it
    assert service.public_key is not None
    service.lost_key_answers = 0
    assert device.check() is not None
    service.lost_key_answers = 100
    with pytest.raises(DeviceError):
        device.rotate_key()
    service.lost_key_answers = 0
    assert device.check() is not None


@pytest.mark.parametrize("ahead_s", [-50 * 365 * 86_400, 40_000])
def test_a_wrong_clock_is_put_right_for_signatures(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice, ahead_s: float
) -> None:
    service.protocol = 4
    device, real = open_device(), service.time_s
    service.time_s = lambda: max(real() + ahead_s, 0)
    assert device.check() is not None


def test_a_key_that_cannot_be_read_is_said(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice, tmp_path: Path
) -> None:
    service.protocol = 4
    device = open_device()
    (tmp_path / "home" / "device.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\nnone\n")
    with pytest.raises(EnrolmentError, match=r"device\.key cannot be read"):
        device.check()


@pytest.mark.parametrize("loses", ["unsynced", "nothing", "content", "some"])
@pytest.mark.parametrize("has_key", [False, True])
def test_a_power_cut_at_any_operation_of_a_new_key(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice, tmp_path: Path, *, loses: Loses, has_key: bool
) -> None:
    service.protocol = 4 if has_key else None
    open_device().check()
    service.protocol, known = 4, service.public_key
    home, kept = tmp_path / "home", tmp_path / "kept"
    shutil.copytree(home, kept, symlinks=True)
    clean = FaultyDisk(tmp_path / "clean")
    open_device(disk=clean).rotate_key()
    assert len(clean.operations) > 5
    for cut_at in range(1, len(clean.operations) + 1):
        shutil.rmtree(home)
        shutil.copytree(kept, home, symlinks=True)
        service.public_key = known
        with pytest.raises(PowerCut):
            open_device(disk=FaultyDisk(tmp_path / f"stash-{cut_at}", cut_at=cut_at, loses=loses)).rotate_key()
        device = open_device()
        assert device.check() is not None, clean.operations[cut_at - 1]
        assert device.check() is not None
        assert not (home / "device.key.next").exists()
