"""The audit log: append-only, and chained, so that a changed or missing entry shows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import select, text

from server.errors import DatabaseError
from server.registry.operator_records import AuditRecord
from server.registry.operator_tables import AuditRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from server.registry.operator_records import AuditVia

FIRST: Final = "0" * 64
# Any fixed number that no other program on the same PostgreSQL is likely to lock.
_POSTGRES_LOCK: Final = 0x1A3E11B
_ACTOR, _ACTION, _TEXT = 128, 64, 300
_STEP: Final = 1_000


class AuditTransactions(Transactions):
    """The registry's transactions on the audit log; there is none that changes or removes an entry."""

    def record_audit(self, *, actor: str, via: AuditVia, action: str, subject: str, outcome: str) -> AuditRecord:
        """Append who did what, and how it ended."""
        with self._write() as session:
            _take_turn(session)
            last = session.scalar(select(AuditRow).order_by(AuditRow.position.desc()).limit(1))
            entry = AuditRecord(
                position=1 if last is None else last.position + 1,
                at=self._now(),
                actor=_printable(actor)[:_ACTOR],
                via=via,
                action=action[:_ACTION],
                subject=_printable(subject)[:_TEXT],
                outcome=_printable(outcome)[:_TEXT],
                previous=FIRST if last is None else last.digest,
                digest="",
            )
            entry = replace(entry, digest=entry.expected_digest())
            session.add(AuditRow(**vars(entry)))
            return entry

    def audit_log(self, *, before: int | None = None, limit: int | None = None) -> tuple[AuditRecord, ...]:
        """Entries, the newest first; ``before`` is the last position of a page."""
        query = select(AuditRow).order_by(AuditRow.position.desc()).limit(limit)
        if before is not None:
            query = query.where(AuditRow.position < before)
        with self._read() as session:
            return tuple(_entry(row) for row in session.scalars(query))

    def verify_audit(self) -> tuple[int, str]:
        """Recompute the whole chain; how many entries there are, and the newest one's digest.

        Who can write to the database can cut off the end, or make the chain anew: keep this digest elsewhere.

        Raises:
            DatabaseError: An entry was changed, or one is missing.
        """
        position, digest = 0, FIRST
        for entry in self._all_entries():
            is_next = (entry.position, entry.previous) == (position + 1, digest)
            if not is_next or entry.digest != entry.expected_digest():
                raise DatabaseError(
                    f"The audit log was changed at or before entry {entry.position} ({entry.at:%Y-%m-%d %H:%M} UTC). "
                    "Compare it with a backup."
                )
            position, digest = entry.position, entry.digest
        return position, digest

    def _all_entries(self) -> Iterator[AuditRecord]:
        after = 0
        while True:
            query = select(AuditRow).where(AuditRow.position > after).order_by(AuditRow.position).limit(_STEP)
            with self._read() as session:
                entries = [_entry(row) for row in session.scalars(query)]
            yield from entries
            if len(entries) < _STEP:
                return
            after = entries[-1].position


def _take_turn(session: Session) -> None:
    # Two entries must not follow the same one; SQLite's writing transaction is the lock already.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})


def _printable(words: str) -> str:
    return "".join(character if character.isprintable() else " " for character in words)


def _entry(row: AuditRow) -> AuditRecord:
    return AuditRecord(
        position=row.position,
        at=row.at,
        actor=row.actor,
        via=row.via,
        action=row.action,
        subject=row.subject,
        outcome=row.outcome,
        previous=row.previous,
        digest=row.digest,
    )
