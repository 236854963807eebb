"""Differential privacy: instructions and contributions, a ledger of events, accounting, DP-SGD, audits, reports.

What every participant needs is here and light. The rest is imported by its own name, so that nobody pays for what
they do not use: `privacy.accountant`, `privacy.calibration`, `privacy.budget` (dp_accounting), `privacy.dp_sgd` (torch
and Opacus), `privacy.audits` (scipy), `privacy.report` (matplotlib when a report is drawn).
"""

from privacy.contribution import LEAVES_THE_DEVICE, Contribution, RoundInstructions
from privacy.errors import (
    AuditError,
    BrokenChainError,
    BudgetExceededError,
    CalibrationError,
    ContributionError,
    InstructionsError,
    LedgerError,
    PrivacyError,
    ReportError,
    SecureSumError,
    StatementError,
    UnknownEventError,
    UnreadableKeyError,
    UnsupportedModuleError,
)
from privacy.event import PrivacyEvent
from privacy.ledger import JsonlLedger, PrivacyLedger

__all__ = [
    "LEAVES_THE_DEVICE",
    "AuditError",
    "BrokenChainError",
    "BudgetExceededError",
    "CalibrationError",
    "Contribution",
    "ContributionError",
    "InstructionsError",
    "JsonlLedger",
    "LedgerError",
    "PrivacyError",
    "PrivacyEvent",
    "PrivacyLedger",
    "ReportError",
    "RoundInstructions",
    "SecureSumError",
    "StatementError",
    "UnknownEventError",
    "UnreadableKeyError",
    "UnsupportedModuleError",
]
