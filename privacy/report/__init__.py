"""Events and audits → one report that a privacy officer can read and anyone can recompute.

Every figure comes from the events; nothing is asserted that was not given or computed. The same content is written as
HTML, Markdown and JSON beside the ledger it rests on. Contents after NIST SP 800-226 and "How to DP-fy ML" (Ponomareva
et al. 2023).
"""

from privacy.report.build import ReportPaths, build_report, write_report
from privacy.report.schema import (
    AuditReport,
    DeviceCost,
    DeviceSeries,
    RoundCost,
    RunFacts,
    TensorFact,
    UtilityFigure,
)

__all__ = [
    "AuditReport",
    "DeviceCost",
    "DeviceSeries",
    "ReportPaths",
    "RoundCost",
    "RunFacts",
    "TensorFact",
    "UtilityFigure",
    "build_report",
    "write_report",
]
