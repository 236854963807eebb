"""The registry: what exists and what happened, in SQLite or PostgreSQL."""

from server.registry.records import (
    ChannelMoveRecord,
    DeviceCase,
    DevicePolicyRecord,
    DeviceRecord,
    EnrolmentTokenRecord,
    GateResult,
    OfferRecord,
    PackageRecord,
    ReportRecord,
    RolloutChangeRecord,
    RolloutFailureRecord,
    RolloutProgress,
    RoundRecord,
    RunRecord,
    TargetRecord,
    VersionRecord,
)
from server.registry.registry import Registry

__all__ = [
    "ChannelMoveRecord",
    "DeviceCase",
    "DevicePolicyRecord",
    "DeviceRecord",
    "EnrolmentTokenRecord",
    "GateResult",
    "OfferRecord",
    "PackageRecord",
    "Registry",
    "ReportRecord",
    "RolloutChangeRecord",
    "RolloutFailureRecord",
    "RolloutProgress",
    "RoundRecord",
    "RunRecord",
    "TargetRecord",
    "VersionRecord",
]
