"""The agent: keeps one device up to date and whole, with jittered polling, until it is told to stop."""

import logging
import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from client_sdk.device import Device
from client_sdk.errors import (
    ConfigurationError,
    DeviceError,
    EnrolmentError,
    OfferRefusedError,
    ServiceUnavailableError,
)
from client_sdk.update_result import UpdateResult

_MAX_DOUBLINGS = 5
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """How one poll went: whether the next may come as usual, and how long the service asked to be left alone."""

    is_well: bool
    at_least_s: float = 0.0


def run_agent(
    device: Device,
    *,
    interval_s: float,
    jitter: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> NoReturn:
    """Update, wait, and again, until SIGTERM or SIGINT; logs one line a decision.

    A signal may end an update at any moment: every step leaves what the next run understands, and a download goes on
    where it stopped.

    Args:
        device: an enrolled device.
        interval_s: mean seconds between two polls; it doubles with every failure in a row, up to 32 times. A service
            that asks for more (Retry-After) gets it.
        jitter: each wait is longer or shorter by up to this fraction, so that a fleet does not poll in step.
        sleep: waits.
        clock: seconds since some fixed moment, for the interval of the scrub (`device.toml`).

    Raises:
        SystemExit: code 0 when told to stop.
        EnrolmentError: the device is not enrolled (any more); polling cannot change that.
    """
    told: list[int] = []

    def stop(signal_number: int, _frame: FrameType | None) -> NoReturn:
        told.append(signal_number)
        _logger.info("stopped by %s", signal.Signals(signal_number).name)
        raise SystemExit(0)

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, stop)
    _logger.info("keeping %s up to date, every %.0f s", device.status().name, interval_s)
    failures = 0
    scrubbed_at = clock()
    jittered = random.SystemRandom()
    while True:
        polled = poll(device)
        failures = 0 if polled.is_well else min(failures + 1, _MAX_DOUBLINGS)
        if clock() - scrubbed_at >= _scrub_interval_s(device):
            scrubbed_at = clock()
            scrub(device)
        if told:
            raise SystemExit(0)  # Python drops what a handler raises inside a destructor or a callback of the collector
        wait_s = interval_s * 2.0**failures * jittered.uniform(1.0 - jitter, 1.0 + jitter)
        # Spread behind the moment that was asked for: the whole fleet was told the same one.
        sleep(max(wait_s, polled.at_least_s * jittered.uniform(1.0, 1.0 + jitter)))


def scrub(device: Device) -> None:
    """Hash what is installed and repair it, and log what was found."""
    try:
        result = device.repair()
    except DeviceError as error:
        _logger.warning("%s: %s", type(error).__name__, error)
        return
    if result.decision == "up_to_date":
        _logger.info("v%s is whole", result.from_version)
    else:
        _logger.warning("repaired: %s", describe(result))


def poll(device: Device) -> Polled:
    """Update once and log the decision.

    Raises:
        EnrolmentError: the device is not enrolled (any more).
    """
    try:
        result = device.update()
    except EnrolmentError:
        raise
    except DeviceError as error:
        _logger.warning("%s: %s", type(error).__name__, error)
        # A refused offer cost one small request, and the operator's answer to it should be seen soon.
        asked = error.retry_after_s if isinstance(error, ServiceUnavailableError) else None
        return Polled(is_well=isinstance(error, OfferRefusedError), at_least_s=asked or 0.0)
    _logger.log(logging.WARNING if result.decision == "reverted" else logging.INFO, "%s", describe(result))
    return Polled(is_well=True)


def describe(result: UpdateResult) -> str:
    """One line for people."""
    before = f"v{result.from_version}" if result.from_version else "nothing"
    if result.decision == "up_to_date":
        return f"up to date at {before}" if result.from_version else "nothing is offered to this device yet"
    if result.decision == "postponed":
        return f"postponed: {result.reason}. {before} serves on."
    how = ""
    if result.package:
        how = (
            f" ({result.package} package of {result.package_bytes / 1e6:.2f} MB, downloaded in "
            f"{result.download_seconds:.1f} s, applied in {result.apply_seconds:.1f} s)"
        )
    if result.decision == "reverted":
        return f"v{result.to_version} failed its self-test{how}: {result.reason} {before} serves on."
    note = f"; a cheaper package did not work: {result.reason}" if result.reason else ""
    return f"{before} -> v{result.to_version} confirmed{how}{note}"


def _scrub_interval_s(device: Device) -> float:
    try:
        return device.config().scrub_interval_s or math.inf
    except ConfigurationError:
        return math.inf  # told by every poll
