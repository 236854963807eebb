"""What most tests of this room start from: a running fake update service, and a device enrolled with it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulators.fake_clock import FakeClock
from simulators.faulty_disk import FaultyDisk
from simulators.update_service import FakeUpdateService
from simulators.versions import write_tree

from client_sdk import Conditions, Device, Limits
from client_sdk.disk import Disk
from delta_updates import VersionManifest

OpenDevice = Callable[..., Device]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeUpdateService]:
    with FakeUpdateService(tmp_path / "service").running() as service:
        yield service


@pytest.fixture
def v1(service: FakeUpdateService, tmp_path: Path) -> Path:
    tree = write_tree(tmp_path / "v1")
    service.publish(tree, version=1)
    return tree


@pytest.fixture
def open_device(service: FakeUpdateService, tmp_path: Path) -> OpenDevice:
    """Opens the device's folder as a new process would; enrols it the first time."""

    def open_it(
        *,
        disk: Disk | None = None,
        clock: FakeClock | None = None,
        test_version: Callable[[Path, VersionManifest], None] = lambda _tree, _manifest: None,
        conditions: Callable[[], Conditions] = Conditions,
        max_epsilon: float | None = None,
    ) -> Device:
        device = Device(
            tmp_path / "home",
            limits=Limits(read_timeout_s=2.0, attempts=3),
            clock=clock or FakeClock(),
            disk=disk or FaultyDisk(tmp_path / "stash"),  # one without faults, which spares the time of real syncs
            test_version=test_version,
            conditions=conditions,
            max_epsilon=max_epsilon,
        )
        if not (tmp_path / "home" / "state.json").exists():
            device.enroll(service.enrolment(tmp_path), name="kitchen")
        return device

    return open_it
