"""SIGKILL at random moments of real updates, most of them from a real service: a complete version, always."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from simulators import killed_device
from simulators.server_home import MODEL, open_home
from simulators.service_process import running_services
from simulators.update_service import FakeUpdateService
from simulators.versions import write_tree

from client_sdk import Device
from delta_updates import verify_tree

pytestmark = pytest.mark.slow
KILLS = 200
# Of updates from a service that is not real: it only adds that nothing was reported which did not happen.
FEWER_KILLS = 50


class Starter:
    """Starts updates of one home, and may kill them."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, killed_device.__file__, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        assert self._line() == "ready"

    def update(self, *, kill_after_s: float | None = None) -> tuple[int, float]:
        """One update; returns its wait status and its seconds."""
        assert self.process.stdin is not None
        started = time.monotonic()
        self.process.stdin.write("never\n" if kill_after_s is None else f"{kill_after_s}\n")
        self.process.stdin.flush()
        status = int(self._line())
        return status, time.monotonic() - started

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeUpdateService]:
    with FakeUpdateService(tmp_path / "service").running() as service:
        yield service


@pytest.mark.timeout(900)
def test_killed_at_random_moments(service: FakeUpdateService, tmp_path: Path) -> None:
    home, kept = tmp_path / "home", tmp_path / "kept"
    service.publish(write_tree(tmp_path / "v1"), version=1)
    Device(home).enroll(service.enrolment(tmp_path), name="kitchen")
    starter = Starter(home)
    try:
        assert starter.update()[0] == 0
        service.publish(write_tree(tmp_path / "v2", base_seed=2, adapter_seed=2), version=2, deltas_from=(1,))
        shutil.copytree(home, kept, symlinks=True)
        status, whole_s = starter.update()
        assert status == 0
        chance = random.Random(2026)
        found: Counter[tuple[bool, int | None]] = Counter()
        for _ in range(FEWER_KILLS):
            shutil.rmtree(home)
            shutil.copytree(kept, home, symlinks=True)
            service.reports.clear()
            status, _ = starter.update(kill_after_s=chance.uniform(0.0, whole_s))
            device = Device(home)
            active = device.active()  # something complete serves, whatever happened
            verify_tree(active.tree, active.manifest.files)
            found[os.WIFSIGNALED(status), active.manifest.version] += 1
            assert starter.update()[0] == 0
            active = device.active()
            verify_tree(active.tree, active.manifest.files)
            assert active.manifest.version == 2
            assert (2, "confirmed") in service.outcomes()
            assert not {"reverted", "failed"} & {outcome for _, outcome in service.outcomes()}
    finally:
        starter.close()
    # The kills really came in the middle: some left the old version, and most of them ended a process.
    assert found[True, 1] >= FEWER_KILLS // 4, found


@pytest.mark.timeout(900)
def test_killed_at_random_moments_of_updates_from_a_real_service(tmp_path: Path) -> None:
    """The same with uvicorn, the registry and signed metadata in a process of their own."""
    served = open_home(tmp_path)
    served.release_three()
    home, kept = tmp_path / "device", tmp_path / "kept"
    token, _ = served.registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    root = json.loads((served.settings.home / "metadata" / "1.root.json").read_bytes())
    invitation = tmp_path / "invitation.json"
    with running_services({"LAMELLA_HOME": str(served.settings.home)}, count=1) as (address,):
        invitation.write_text(json.dumps({"server_url": address, "model": MODEL, "token": token, "root": root}))
        Device(home).enroll(invitation, name="kitchen")
        starter = Starter(home)
        try:
            assert starter.update()[0] == 0
            served.candidate(3, parent=3)
            served.publish(4)
            shutil.copytree(home, kept, symlinks=True)
            status, whole_s = starter.update()
            assert status == 0
            chance = random.Random(2026)
            found: Counter[tuple[bool, int | None]] = Counter()
            for _ in range(KILLS):
                shutil.rmtree(home)
                shutil.copytree(kept, home, symlinks=True)
                status, _ = starter.update(kill_after_s=chance.uniform(0.0, whole_s))
                active = Device(home).active()
                verify_tree(active.tree, active.manifest.files)
                found[os.WIFSIGNALED(status), active.manifest.version] += 1
                assert starter.update()[0] == 0
                active = Device(home).active()
                verify_tree(active.tree, active.manifest.files)
                assert active.manifest.version == 4
        finally:
            starter.close()
    assert found[True, 3] >= KILLS // 4, found
    served.registry.close()
