"""When a download waits, and what Linux says about power."""

from pathlib import Path

import pytest

from client_sdk.conditions import Conditions, reason_to_wait, system_conditions
from client_sdk.device_config import DownloadPolicy

METERED = Conditions(is_metered=True)
LOW = Conditions(battery_percent=10, is_charging=False)


@pytest.mark.parametrize(
    ("policy", "conditions", "package_bytes", "word"),
    [
        (DownloadPolicy(), Conditions(), 10**9, ""),
        (DownloadPolicy(metered="never"), METERED, 1, "metered"),
        (DownloadPolicy(metered_max_bytes=100), METERED, 101, "metered_max_bytes"),
        (DownloadPolicy(metered_max_bytes=100), METERED, 100, ""),
        (DownloadPolicy(metered="always"), METERED, 10**9, ""),
        (DownloadPolicy(), LOW, 1, "battery is at 10%"),
        (DownloadPolicy(min_battery_percent=10), LOW, 1, ""),
        (DownloadPolicy(), Conditions(battery_percent=10, is_charging=True), 1, ""),
        # Unknown is not low: a box without a battery must not wait for ever.
        (DownloadPolicy(min_battery_percent=100), Conditions(is_charging=False), 1, ""),
    ],
)
def test_what_waits(policy: DownloadPolicy, conditions: Conditions, package_bytes: int, word: str) -> None:
    reason = reason_to_wait(policy, conditions, package_bytes=package_bytes)
    assert word in reason if word else reason == ""


def supply(power: Path, name: str, **files: str) -> None:
    (power / name).mkdir(parents=True)
    for file, content in files.items():
        (power / name / file).write_text(content + "\n")


def test_linux_power_supplies(tmp_path: Path) -> None:
    assert system_conditions(tmp_path / "none") == Conditions()
    supply(tmp_path, "AC", type="Mains", online="1")
    supply(tmp_path, "mouse", type="Battery", scope="Device", capacity="3", status="Discharging")
    assert system_conditions(tmp_path) == Conditions()
    supply(tmp_path, "BAT0", type="Battery", capacity="80", status="Full")
    assert system_conditions(tmp_path) == Conditions(battery_percent=80, is_charging=True)
    supply(tmp_path, "BAT1", type="Battery", capacity="17", status="Discharging")
    assert system_conditions(tmp_path) == Conditions(battery_percent=17, is_charging=False)
    supply(tmp_path, "BAT2", type="Battery", capacity="¼", status="Discharging")
    assert system_conditions(tmp_path) == Conditions(battery_percent=17, is_charging=False)
