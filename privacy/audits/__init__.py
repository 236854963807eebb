"""Attacks on our own releases, each returning a measured value, its interval and how to read it."""

from privacy.audits.membership import MembershipResult, OperatingPoint, membership_audit

__all__ = ["MembershipResult", "OperatingPoint", "membership_audit"]
