"""What the registry answers with: frozen values, detached from the database."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from delta_updates.manifest import VersionManifest
from privacy.attestation import statement_path
from server.registry.gate_result import GateResult
from server.rollouts import Counts, DeviceFacts, Measured, Metric, Release, Rollout, RolloutState

# Counting a rollout's reports costs milliseconds: devices that only ask make it happen this often.
EVALUATE_EVERY: Final = timedelta(seconds=10)

RunStatus = Literal["running", "completed", "failed"]
VersionState = Literal["candidate", "released", "rejected", "withdrawn"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One federated run."""

    run_id: str
    model: str
    recipe: Mapping[str, object]
    base_version: int
    base_hash: str
    parent_version: int | None
    status: RunStatus
    reason: str
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One finished server round; ``artifacts`` maps a name to the digest of its bytes in the artifact store."""

    run_id: str
    server_round: int
    status: str
    replies: int
    failures: Mapping[str, str]
    held_out_loss: float | None
    artifacts: Mapping[str, str]
    facts: Mapping[str, object]
    recorded_at: datetime


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """One version of a model. Everything but its state is fixed when it is added.

    ``master_sha256`` is the digest of the unrounded adapter in the artifact store: the server's own, in no package.
    """

    model: str
    number: int
    manifest: VersionManifest
    state: VersionState
    reason: str
    gate: GateResult | None
    run_id: str | None
    master_sha256: str | None
    created_at: datetime
    released_at: datetime | None

    @property
    def manifest_path(self) -> str:
        """The signed path of this version's manifest."""
        return f"manifests/{self.model}/{self.number}.json"


@dataclass(frozen=True, kw_only=True)
class PackageRecord:
    """One package that turns ``source_version`` (None: nothing, a full package) into ``version``.

    Devices whose protocol is older than its ``format`` cannot read it.
    """

    model: str
    version: int
    source_version: int | None
    path: str
    length: int
    sha256: str
    format: int
    facts: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """A released file that the API may serve."""

    path: str
    length: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StatementRecord:
    """A version's signed privacy statement; all hashes are artifacts.

    Attributes:
        model: Whose version it is.
        version: Its number.
        sha256: Of the envelope.
        length: Of the envelope, in bytes.
        report_sha256: Of the report.json that it names.
        ledger_sha256: Of the ledger.jsonl that it names.
        keyid: Of the releases key that signed it.
        public_key: That key's 32 bytes in hex.
    """

    model: str
    version: int
    sha256: str
    length: int
    report_sha256: str
    ledger_sha256: str
    keyid: str
    public_key: str

    @property
    def target(self) -> TargetRecord:
        """The signed file."""
        return TargetRecord(path=statement_path(self.model, self.version), length=self.length, sha256=self.sha256)


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """One enrolled device, with what it last said it runs, and the disk bytes that it had for an update then."""

    device_id: str
    name: str
    model: str
    enrolled_at: datetime
    last_seen_at: datetime | None
    revoked_at: datetime | None
    installed_version: int | None
    installed_hash: str | None
    has_key: bool = False
    free_bytes: int | None = None

    def is_news(self, installed_version: int | None, installed_hash: str | None, free_bytes: int | None) -> bool:
        """Whether what the device tells is worth a write: it was never here, runs something else, or its disk changed.

        Free bytes differ a little with every question; a tenth counts.
        """
        if self.last_seen_at is None:
            return True
        if (self.installed_version, self.installed_hash) != (installed_version, installed_hash):
            return True
        if self.free_bytes is None or free_bytes is None:
            return self.free_bytes is not free_bytes
        return abs(free_bytes - self.free_bytes) * 10 > max(self.free_bytes, 1)


@dataclass(frozen=True, kw_only=True)
class EnrolmentTokenRecord:
    """One enrolment token; the token itself is stored nowhere. ``used_at`` and ``device_id`` are of its last use."""

    token_id: int
    model: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    device_id: str | None
    max_uses: int
    uses: int
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class OfferRecord:
    """What one device was offered."""

    offer_id: str
    device_id: str
    model: str
    version: int
    package_path: str
    offered_at: datetime
    rollout_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReportRecord:
    """One outcome that a device reported about an offer."""

    offer_id: str
    device_id: str
    version: int
    outcome: str
    reason: str
    bytes_downloaded: int
    apply_seconds: float
    received_at: datetime


@dataclass(frozen=True, kw_only=True)
class RolloutProgress:
    """A rollout and how its devices fare.

    Attributes:
        phase: The devices that came with the current phase.
        total: All devices that were offered its version.
        quality: Means of what devices measured.
        remaining: Devices it is for that do not run its version yet.
        outlook: What it waits for, or does next.
    """

    rollout: Rollout
    phase: Counts
    total: Counts
    quality: Mapping[Metric, Measured]
    remaining: int
    outlook: str


@dataclass(frozen=True, kw_only=True)
class RolloutFailureRecord:
    """Why devices did not take a rollout's version (it failed, or they declined), and how many reports said so."""

    outcome: str
    reason: str
    reports: int


@dataclass(frozen=True, kw_only=True)
class RolloutChangeRecord:
    """What a rollout became, and why."""

    revision: int
    state: RolloutState
    phase: int
    reason: str
    changed_at: datetime


@dataclass(frozen=True, kw_only=True)
class ChannelMoveRecord:
    """What a channel pointed at from a moment on; no version: at nothing."""

    model: str
    channel: str
    position: int
    version: int | None
    rollout_id: int | None
    reason: str
    moved_at: datetime


@dataclass(frozen=True, kw_only=True)
class DevicePolicyRecord:
    """What operators decided about one device."""

    device_id: str
    channel: str
    group: str | None
    tags: tuple[str, ...]
    is_opted_out: bool
    forced_version: int | None


@dataclass(frozen=True, kw_only=True)
class AskingDevice:
    """A device that asks, what operators decided about it, and the change token, all of one moment."""

    device: DeviceRecord
    policy: DevicePolicyRecord
    token: str

    def facts(self, installed_version: int | None) -> DeviceFacts:
        """What the rules look at in it, without its reverted versions."""
        return DeviceFacts(
            device_id=self.device.device_id,
            installed_version=installed_version,
            channel=self.policy.channel,
            group=self.policy.group,
            tags=frozenset(self.policy.tags),
            is_opted_out=self.policy.is_opted_out,
            forced_version=self.policy.forced_version,
        )


@dataclass(frozen=True, kw_only=True)
class FollowedRollout:
    """A rollout that may give something to a device, and when its reports were counted last."""

    rollout: Rollout
    evaluated_at: datetime | None

    def is_due(self, now: datetime) -> bool:
        """Whether its reports were not counted for a while."""
        is_open = self.rollout.state in {"running", "paused"}
        return is_open and (self.evaluated_at is None or now - self.evaluated_at >= EVALUATE_EVERY)


@dataclass(frozen=True, kw_only=True)
class DeviceCase:
    """All that decides on a device at a moment; ``due`` are rollouts whose reports were not counted for a while."""

    facts: DeviceFacts
    releases: Mapping[int, Release]
    rollouts: tuple[Rollout, ...]
    due: tuple[int, ...]
    now: datetime
