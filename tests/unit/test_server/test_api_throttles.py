"""Who asks too often is told when to come back."""

from pathlib import Path

import pytest
from simulators.update_api import Service


@pytest.fixture
def busy(three_versions: Path, tmp_path: Path) -> Service:
    import shutil

    shutil.copytree(three_versions, tmp_path / "service")
    with Service(tmp_path / "service", device_requests_per_minute=5) as service:
        yield service


def test_a_device_that_asks_too_often_is_told_when_to_come_back(busy: Service) -> None:
    noisy, quiet = busy.enrol("noisy"), busy.enrol("quiet")
    assert [busy.check(noisy).status_code for _ in range(5)] == [200] * 5
    answer = busy.check(noisy)
    assert answer.status_code == 429
    assert answer.headers["content-type"] == "application/problem+json"
    assert 0 < int(answer.headers["retry-after"]) <= 12
    assert "Too many requests of this device. Try again in" in answer.json()["detail"]
    path = "/v1/targets/manifests/tiny/3.json"
    assert busy.client.get(path, headers=noisy).status_code == 429
    assert busy.check(quiet).status_code == 200


def test_a_fleet_behind_one_address_enrols_but_guesses_run_out(busy: Service) -> None:
    wrong = {"token": "no-such-token", "name": "x"}
    for _ in range(3):
        busy.enrol()
    statuses = [busy.client.post("/v1/devices", json=wrong).status_code for _ in range(62)]
    assert statuses[:60] == [410] * 60
    assert 429 in statuses[60:]
    answer = busy.client.post("/v1/devices", json=wrong)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1


def test_without_a_limit_nobody_waits(three_versions: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(three_versions, tmp_path / "service")
    with Service(tmp_path / "service", device_requests_per_minute=0) as service:
        device = service.enrol()
        assert {service.check(device).status_code for _ in range(30)} == {200}
