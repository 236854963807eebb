"""What audits found about a run: kept with it, read by its report and by the release gate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003 - the API reads annotations
from typing import TYPE_CHECKING

from sqlalchemy import select

from privacy.audits import Finding, MembershipResult
from privacy.audits.finding import EarlierFinding
from server.errors import NotFoundError
from server.registry.privacy_tables import AuditFindingRow, AuditHistoryRow
from server.registry.tables import RunRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class FindingRecord:
    """A finding, the part of the audit that brought it, and when."""

    finding: Finding
    asked_for: str
    detail: MembershipResult | None
    recorded_at: datetime


class AuditFindingTransactions(Transactions):
    """The registry's transactions on findings."""

    def record_findings(
        self, run_id: str, asked_for: str, findings: Sequence[Finding], *, detail: MembershipResult | None = None
    ) -> None:
        """Keep what one part of an audit found, in place of what it found before, which goes into the history.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._write() as session:
            if session.get(RunRow, run_id) is None:
                raise NotFoundError(f"There is no run {run_id!r}. `lamella runs list` shows what there is.")
            stale = select(AuditFindingRow).where(
                AuditFindingRow.run_id == run_id, AuditFindingRow.asked_for == asked_for
            )
            for row in session.scalars(stale):
                session.add(
                    AuditHistoryRow(run_id=run_id, part=row.part, finding=row.finding, recorded_at=row.recorded_at)
                )
                session.delete(row)
            session.flush()
            for finding in findings:
                session.add(
                    AuditFindingRow(
                        run_id=run_id,
                        part=finding.part,
                        asked_for=asked_for,
                        finding=json.loads(finding.model_dump_json()),
                        detail=None if detail is None else json.loads(detail.model_dump_json()),
                        recorded_at=self._now(),
                    )
                )

    def audit_findings(self, run_id: str) -> tuple[FindingRecord, ...]:
        """What is known about a run, in the order of asking."""
        with self._read() as session:
            rows = session.scalars(
                select(AuditFindingRow)
                .where(AuditFindingRow.run_id == run_id)
                .order_by(AuditFindingRow.recorded_at, AuditFindingRow.part)
            )
            return tuple(_record(row) for row in rows)

    def earlier_findings(self, run_id: str) -> tuple[EarlierFinding, ...]:
        """What audits of a run had found before they were made again, oldest first."""
        with self._read() as session:
            rows = session.scalars(
                select(AuditHistoryRow).where(AuditHistoryRow.run_id == run_id).order_by(AuditHistoryRow.position)
            )
            found = [(Finding.model_validate_json(json.dumps(row.finding)), row.recorded_at) for row in rows]
        return tuple(
            EarlierFinding(part=one.part, verdict=one.verdict, reason=one.reason, recorded_at=when)
            for one, when in found
        )


def _record(row: AuditFindingRow) -> FindingRecord:
    return FindingRecord(
        finding=Finding.model_validate_json(json.dumps(row.finding)),
        asked_for=row.asked_for,
        detail=None if row.detail is None else MembershipResult.model_validate_json(json.dumps(row.detail)),
        recorded_at=row.recorded_at,
    )
