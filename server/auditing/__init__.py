"""Audits of a federated run: its mechanism with canaries in it, and attacks on what it released."""

from server.auditing.plan import PARTS, AuditPlan
from server.auditing.run_audit import RunAudit, open_audit

__all__ = ["PARTS", "AuditPlan", "RunAudit", "open_audit"]
