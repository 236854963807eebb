"""The registry: what exists and what happened, in SQLite or PostgreSQL."""

from server.registry.ddi_records import ActionRecord, ControllerRecord, FailedAttempt, FileDigests, GatewayTokenRecord
from server.registry.gate_result import GateResult
from server.registry.operator_records import AuditRecord, OperatorRecord, OperatorTokenRecord, Role
from server.registry.records import (
    AskingDevice,
    ChannelMoveRecord,
    DeviceCase,
    DevicePolicyRecord,
    DeviceRecord,
    EnrolmentTokenRecord,
    OfferRecord,
    PackageRecord,
    ReportRecord,
    RolloutChangeRecord,
    RolloutFailureRecord,
    RolloutProgress,
    RoundRecord,
    RunRecord,
    StatementRecord,
    TargetRecord,
    VersionRecord,
)
from server.registry.registry import Registry
from server.registry.standing import Standing

__all__ = [
    "ActionRecord",
    "AskingDevice",
    "AuditRecord",
    "ChannelMoveRecord",
    "ControllerRecord",
    "DeviceCase",
    "DevicePolicyRecord",
    "DeviceRecord",
    "EnrolmentTokenRecord",
    "FailedAttempt",
    "FileDigests",
    "GateResult",
    "GatewayTokenRecord",
    "OfferRecord",
    "OperatorRecord",
    "OperatorTokenRecord",
    "PackageRecord",
    "Registry",
    "ReportRecord",
    "Role",
    "RolloutChangeRecord",
    "RolloutFailureRecord",
    "RolloutProgress",
    "RoundRecord",
    "RunRecord",
    "Standing",
    "StatementRecord",
    "TargetRecord",
    "VersionRecord",
]
