"""The registry: what exists and what happened, in SQLite or PostgreSQL."""

from server.registry.operator_records import AuditRecord, OperatorRecord, OperatorTokenRecord, Role
from server.registry.records import (
    DeviceRecord,
    EnrolmentTokenRecord,
    GateResult,
    OfferRecord,
    PackageRecord,
    ReportRecord,
    RoundRecord,
    RunRecord,
    TargetRecord,
    VersionRecord,
)
from server.registry.registry import Registry

__all__ = [
    "AuditRecord",
    "DeviceRecord",
    "EnrolmentTokenRecord",
    "GateResult",
    "OfferRecord",
    "OperatorRecord",
    "OperatorTokenRecord",
    "PackageRecord",
    "Registry",
    "ReportRecord",
    "Role",
    "RoundRecord",
    "RunRecord",
    "TargetRecord",
    "VersionRecord",
]
