"""Power and network of the moment, and whether a download should wait for better ones."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client_sdk.device_config import DownloadPolicy

_POWER = Path("/sys/class/power_supply")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the system says; None where it says nothing, which holds nothing up."""

    battery_percent: int | None = None
    is_charging: bool | None = None
    is_metered: bool | None = None


ConditionsSource = Callable[[], Conditions]


def system_conditions(power: Path = _POWER) -> Conditions:
    """The battery as Linux shows it. Whether a connection is metered, only the application or its user knows."""
    percents, states = [], []
    for supply in sorted(power.glob("*")) if power.is_dir() else ():
        if _read(supply / "type") != "Battery" or _read(supply / "scope") == "Device":
            continue  # the mains, or a mouse
        capacity = _read(supply / "capacity")
        if capacity.isdecimal():
            percents.append(min(100, int(capacity)))
        states.append(_read(supply / "status"))
    return Conditions(
        battery_percent=min(percents, default=None),
        is_charging=all(state in {"Charging", "Full", "Not charging"} for state in states) if states else None,
    )


def reason_to_wait(policy: DownloadPolicy, conditions: Conditions, *, package_bytes: int) -> str:
    """Why a download of this many bytes should not start now; empty when it may."""
    if conditions.is_metered and policy.metered == "never":
        return "the connection is metered, and this device downloads on others only (download.metered)"
    if conditions.is_metered and policy.metered == "small" and package_bytes > policy.metered_max_bytes:
        return (
            f"the connection is metered, and {package_bytes / 1e6:.2f} MB are more than the "
            f"{policy.metered_max_bytes / 1e6:.2f} MB that may be downloaded there (download.metered_max_bytes)"
        )
    battery = conditions.battery_percent
    if battery is not None and not conditions.is_charging and battery < policy.min_battery_percent:
        return (
            f"the battery is at {battery}% and not charging; this device waits for {policy.min_battery_percent}% "
            "(download.min_battery_percent)"
        )
    return ""


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""
