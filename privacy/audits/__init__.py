"""Attacks on our own releases, each returning a measured value, its interval and how to read it."""

from privacy.audits.attack_figures import OperatingPoint
from privacy.audits.finding import Finding, Verdict, worst_verdict
from privacy.audits.losses import Losses
from privacy.audits.membership import MembershipResult, membership_audit, membership_finding

__all__ = [
    "Finding",
    "Losses",
    "MembershipResult",
    "OperatingPoint",
    "Verdict",
    "membership_audit",
    "membership_finding",
    "worst_verdict",
]
