"""Signed privacy statements of versions: written once, before the version is released."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.errors import ConflictError
from server.registry.records import StatementRecord
from server.registry.statement_tables import StatementRow
from server.registry.tables import VersionRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from server.registry.records import TargetRecord


class StatementTransactions(Transactions):
    """The registry's transactions on privacy statements."""

    def record_statement(self, statement: StatementRecord) -> None:
        """Keep a candidate's statement; the same one again changes nothing.

        Raises:
            ConflictError: The version is no candidate, or has another statement: what is signed never changes.
        """
        with self._write() as session:
            version = session.get(VersionRow, (statement.model, statement.version), with_for_update=True)
            if version is None or version.state != "candidate":
                raise ConflictError(f"v{statement.version} of {statement.model!r} is no candidate (any more).")
            known = session.get(StatementRow, (statement.model, statement.version))
            if known is None:
                session.add(StatementRow(**vars(statement), signed_at=self._now()))
            elif _record(known) != statement:
                raise ConflictError(f"v{statement.version} of {statement.model!r} has another statement already.")

    def statement(self, model: str, version: int) -> StatementRecord | None:
        """A version's statement; None: it was released before there were any, or is not published yet."""
        with self._read() as session:
            row = session.get(StatementRow, (model, version))
            return None if row is None else _record(row)


def statement_target(session: Session, model: str, version: int) -> TargetRecord | None:
    """The signed file of a released version's statement."""
    row = session.get(StatementRow, (model, version))
    return None if row is None else _record(row).target


def _record(row: StatementRow) -> StatementRecord:
    return StatementRecord(
        model=row.model,
        version=row.version,
        sha256=row.sha256,
        length=row.length,
        report_sha256=row.report_sha256,
        ledger_sha256=row.ledger_sha256,
        keyid=row.keyid,
        public_key=row.public_key,
    )
