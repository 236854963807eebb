"""What a device remembers beside its slots: who it is, what it must never accept again, what it still has to report."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from client_sdk.disk import Disk, disk_errors, replace_file
from client_sdk.errors import DeviceDiskError, EnrolmentError
from delta_updates.offer import Outcome, OutcomeReport

_MAX_STATE_BYTES = 1 << 20
_MAX_FAILED = 64
_MAX_OUTBOX = 32


class FailedVersion(BaseModel):
    """A version that failed its self-test on this device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    tree_hash: str
    reason: str


class MetadataFloor(BaseModel):
    """The newest signed metadata ever seen: it holds when the cached metadata is lost.

    Compared as a pair: a newer root (signed by the root key) may restart the timestamp versions, which is how an
    operator recovers from a fast-forward attack; nothing else may.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root_version: int = 0
    timestamp_version: int = 0

    def allows(self, other: "MetadataFloor") -> bool:
        """Whether `other` is not older than this."""
        return (other.root_version, other.timestamp_version) >= (self.root_version, self.timestamp_version)


class DeviceState(BaseModel):
    """The content of `state.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    server_url: str
    allow_http: bool = False
    model: str
    device_id: str
    name: str
    highest_version: int = 0
    highest_hash: str | None = None
    metadata_floor: MetadataFloor = MetadataFloor()
    failed: tuple[FailedVersion, ...] = ()
    outbox: tuple[OutcomeReport, ...] = ()
    confirmed_offer_id: str | None = None
    """The last offer whose confirmation was queued: after a crash before that, it still has to be."""
    last_check_at: str | None = None
    last_decision: str = ""

    def raised(self, version: int, tree_hash: str | None) -> Self:
        """The same state, knowing that `version` was confirmed here. The counter never goes down."""
        if version < self.highest_version:
            return self
        return self.model_copy(update={"highest_version": version, "highest_hash": tree_hash or self.highest_hash})

    def with_failed(self, failed: FailedVersion) -> Self:
        """The same state, remembering that a version failed its self-test."""
        kept = tuple(old for old in self.failed if (old.version, old.tree_hash) != (failed.version, failed.tree_hash))
        return self.model_copy(update={"failed": (*kept, failed)[-_MAX_FAILED:]})

    def with_report(self, report: OutcomeReport) -> Self:
        """The same state with one more report to deliver; the oldest give way when the service is away for long."""
        changes: dict[str, object] = {"outbox": (*self.outbox, report)[-_MAX_OUTBOX:]}
        if report.outcome is Outcome.CONFIRMED:
            changes["confirmed_offer_id"] = report.offer_id
        return self.model_copy(update=changes)

    def with_decision(self, decision: str) -> Self:
        """The same state, with the time and the words of the latest decision."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self.model_copy(update={"last_check_at": now, "last_decision": decision[:500]})


class StateFile:
    """Reads and durably replaces `state.json`."""

    def __init__(self, home: Path, disk: Disk) -> None:
        self._path = home / "state.json"
        self._disk = disk

    def exists(self) -> bool:
        """Whether this home was enrolled."""
        return self._path.exists()

    def load(self) -> DeviceState:
        """Read the state.

        Raises:
            EnrolmentError: this home was never enrolled.
            DeviceDiskError: the file is unreadable or damaged.
        """
        try:
            with self._path.open("rb") as file:
                raw = file.read(_MAX_STATE_BYTES)
        except FileNotFoundError:
            raise EnrolmentError(
                f"No device is enrolled in {self._path.parent}. Run `lamella-device enroll FILE` with the enrolment "
                "file from the operator."
            ) from None
        except OSError as error:
            raise DeviceDiskError(f"{self._path} cannot be read: {error.strerror}. Check the disk.") from error
        try:
            return DeviceState.model_validate_json(raw)
        except ValidationError as error:
            raise DeviceDiskError(
                f"{self._path} is damaged. Move it away and enrol this device again; the "
                "installed version and its counter are kept in the slots folder."
            ) from error

    def save(self, state: DeviceState) -> None:
        """Replace the state durably.

        Raises:
            DeviceDiskError: the disk is full, read-only or failing.
        """
        with disk_errors(self._path.parent, "storing the device's state"):
            replace_file(self._disk, self._path, state.model_dump_json(indent=1).encode())
