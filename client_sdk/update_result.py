"""What one update did, for people and programs."""

from dataclasses import dataclass
from typing import Literal

from client_sdk.health import HealthFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What one update did.

    Attributes:
        decision: `up_to_date`, `confirmed` (the new version serves), `reverted` (it failed its self-test), or
            `postponed` (this device's policy waits for better conditions).
        from_version, to_version: what served before, and what the update was about.
        package: kind of the package that was applied; a `chain` is several deltas in a row.
        package_bytes, bytes_downloaded: signed length of all that was applied, and what was transferred in this
            process.
        download_seconds, apply_seconds, self_test_seconds: wall time of the steps.
        reason: why it was reverted or postponed, or why a cheaper package gave way to another.
        health: what the self-test measured.
    """

    decision: Literal["up_to_date", "confirmed", "reverted", "postponed"]
    from_version: int | None = None
    to_version: int | None = None
    package: Literal["delta", "chain", "full"] | None = None
    package_bytes: int = 0
    bytes_downloaded: int = 0
    download_seconds: float = 0.0
    apply_seconds: float = 0.0
    self_test_seconds: float = 0.0
    reason: str = ""
    health: HealthFacts | None = None
