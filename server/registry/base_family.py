"""Which bases are kin: made from one another, so that what was spent on one was spent on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from privacy.base_ledgers import BaseLedgers, OtherModel
from privacy.event import PrivacyEvent
from server.errors import InvalidRecordError
from server.registry.privacy_tables import BaseOriginRow, PrivacyBudgetRow
from server.registry.tables import PrivacyEventRow, RunRow, VersionRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class BaseFamilyTransactions(Transactions):
    """The registry's transactions on the origin of bases."""

    def add_base_origin(self, base_hash: str, *, made_from: str) -> None:
        """Write down that a base was made from another one; again changes nothing.

        Raises:
            InvalidRecordError: No version has the base that it was made from.
        """
        if base_hash == made_from:
            return
        with self._write() as session:
            if not _is_known(session, made_from):
                raise InvalidRecordError(f"No version here has the base {made_from}, so none can be made from it.")
            session.merge(BaseOriginRow(base_hash=base_hash, made_from=made_from))

    def knows_base(self, base_hash: str) -> bool:
        """Whether any version stands on a base."""
        with self._read() as session:
            return _is_known(session, base_hash)

    def base_family(self, base_hash: str) -> tuple[str, ...]:
        """A base, then all that it was made from or that were made from it, sorted."""
        with self._read() as session:
            return family_of(session, base_hash)

    def ledgers_beside(self, model: str, *, base_hash: str) -> BaseLedgers | None:
        """The ledgers of the other models that were trained on a base or its kin; None: nothing of them counts.

        Users of a model that is kept apart do not count, nor do anybody's where `model` itself is.
        """
        with self._read() as session:
            family = family_of(session, base_hash)
            query = select(RunRow.model, RunRow.run_id).where(RunRow.base_hash.in_(family), RunRow.model != model)
            runs: dict[str, list[str]] = {}
            for name, run_id in session.execute(query.order_by(RunRow.model, RunRow.run_id)).all():
                runs.setdefault(name, []).append(run_id)
            apart = set(session.scalars(select(PrivacyBudgetRow.population).where(PrivacyBudgetRow.is_apart)))
            others = [
                OtherModel(
                    model=name,
                    events=_ledger(session, name),
                    runs=tuple(own),
                    counts_users=not apart & {name, model},
                )
                for name, own in runs.items()
            ]
        counted = tuple(other for other in others if other.counted)
        return BaseLedgers(bases=family, others=counted) if counted else None


def family_of(session: Session, base_hash: str) -> tuple[str, ...]:
    """A base, then all that it was made from or that were made from it, sorted."""
    kin: dict[str, set[str]] = {}
    for child, origin in session.execute(select(BaseOriginRow.base_hash, BaseOriginRow.made_from)).all():
        kin.setdefault(child, set()).add(origin)
        kin.setdefault(origin, set()).add(child)
    found, waiting = {base_hash}, [base_hash]
    while waiting:
        fresh = kin.get(waiting.pop(), set()) - found
        found |= fresh
        waiting += fresh
    return (base_hash, *sorted(found - {base_hash}))


def _is_known(session: Session, base_hash: str) -> bool:
    return session.scalar(select(VersionRow.number).where(VersionRow.base_hash == base_hash).limit(1)) is not None


def _ledger(session: Session, model: str) -> tuple[PrivacyEvent, ...]:
    query = (
        select(PrivacyEventRow.event)
        .join(RunRow, RunRow.run_id == PrivacyEventRow.run_id)
        .where(RunRow.model == model)
        .order_by(PrivacyEventRow.position)
    )
    return tuple(PrivacyEvent.model_validate_json(event) for event in session.scalars(query))
