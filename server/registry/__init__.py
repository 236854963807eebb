"""The registry: what exists and what happened, in SQLite or PostgreSQL."""

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
    "DeviceRecord",
    "EnrolmentTokenRecord",
    "GateResult",
    "OfferRecord",
    "PackageRecord",
    "Registry",
    "ReportRecord",
    "RoundRecord",
    "RunRecord",
    "TargetRecord",
    "VersionRecord",
]
