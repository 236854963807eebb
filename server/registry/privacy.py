"""Chains of privacy events, budgets of populations, and keys of correlated noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from privacy.budget import PrivacyBudget
from privacy.chain import FIRST_HEAD, event_line, head_after
from privacy.event import PrivacyEvent
from server.errors import ConflictError, DatabaseError, NotFoundError
from server.registry.privacy_tables import NoiseKeyRow, PrivacyBudgetRow, PrivacyChainRow
from server.registry.tables import ModelRow, PrivacyEventRow, RunRow
from server.registry.transactions import Transactions, lock_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session


class PrivacyTransactions(Transactions):
    """The registry's transactions on chains, budgets and noise keys."""

    def verify_privacy_chain(self, model: str) -> tuple[str, ...]:
        """Recompute a model's chain of events; the head after each event.

        Whoever can write to the database can cut off the end, or make the chain anew: compare a report's head.

        Raises:
            DatabaseError: An event was changed, removed, moved, or put in.
        """
        with self._read() as session:
            rows = session.execute(
                select(PrivacyEventRow.event, PrivacyChainRow.sequence, PrivacyChainRow.head)
                .join(RunRow, RunRow.run_id == PrivacyEventRow.run_id)
                .outerjoin(PrivacyChainRow, PrivacyChainRow.position == PrivacyEventRow.position)
                .where(RunRow.model == model)
                .order_by(PrivacyEventRow.position)
            ).all()
            chained = session.scalar(
                select(func.count()).select_from(PrivacyChainRow).where(PrivacyChainRow.model == model)
            )
        heads: list[str] = []
        for number, (raw, sequence, stored) in enumerate(rows, start=1):
            previous = heads[-1] if heads else FIRST_HEAD
            event = PrivacyEvent.model_validate_json(raw)
            heads.append(head_after(previous, event_line(event, previous=previous)))
            if (sequence, stored) != (number, heads[-1]):
                raise _broken(model, number)
        if chained != len(heads):
            raise _broken(model, len(heads) + 1)
        return tuple(heads)

    def user_budget(self, population: str) -> PrivacyBudget | None:
        """What a population may be charged in all; None: nobody has set it yet."""
        with self._read() as session:
            row = session.get(PrivacyBudgetRow, population)
            return None if row is None else _budget(row)

    def set_user_budget(self, population: str, budget: PrivacyBudget) -> None:
        """Set or change what a population may be charged in all.

        Raises:
            NotFoundError: There is no such model.
        """
        with self._write() as session:
            if session.get(ModelRow, population) is None:
                raise NotFoundError(f"There is no model {population!r}. `lamella versions` lists what there is.")
            row = session.get(PrivacyBudgetRow, population)
            if row is None:
                row = PrivacyBudgetRow(population=population)
                session.add(row)
            row.target_epsilon, row.target_delta, row.set_at = budget.target_epsilon, budget.target_delta, self._now()

    def noise_key(self, run_id: str, *, fresh: bytes) -> bytes:
        """The key of a run's correlated noise: the one that is kept, or else `fresh`, kept from now on.

        It must be as safe as the registry itself: it is in no backup of artifacts, answer of the API or log.
        """
        with self._write() as session:
            row = session.get(NoiseKeyRow, run_id)
            if row is None:
                row = NoiseKeyRow(run_id=run_id, key=fresh.hex())
                session.add(row)
            return bytes.fromhex(row.key)

    def forget_noise_key(self, run_id: str) -> None:
        """Remove the key of a run that has ended, so that nobody can ever subtract its noise."""
        with self._write() as session:
            row = session.get(NoiseKeyRow, run_id)
            if row is not None:
                session.delete(row)


def chain_events(session: Session, model: str, rows: Sequence[PrivacyEventRow], events: Sequence[PrivacyEvent]) -> None:
    """Put events that were just written at the end of their model's chain; one transaction at a time."""
    if not rows:
        return
    lock_model(session, model)
    last = session.scalar(
        select(PrivacyChainRow).where(PrivacyChainRow.model == model).order_by(PrivacyChainRow.sequence.desc()).limit(1)
    )
    sequence, head = (0, FIRST_HEAD) if last is None else (last.sequence, last.head)
    for row, event in zip(rows, events, strict=True):
        sequence, head = sequence + 1, head_after(head, event_line(event, previous=head))
        session.add(
            PrivacyChainRow(
                position=row.position, model=model, sequence=sequence, privacy_unit=event.privacy_unit, head=head
            )
        )


def require_user_events(session: Session, model: str, expected: int) -> None:
    """Refuse when another run has charged the same users since their budget was looked at.

    Raises:
        ConflictError: It has.
    """
    lock_model(session, model)
    found = session.scalar(
        select(func.count())
        .select_from(PrivacyChainRow)
        .where(PrivacyChainRow.model == model, PrivacyChainRow.privacy_unit == "user")
    )
    if found != expected:
        raise ConflictError(
            f"Another run charged the users of {model!r} meanwhile ({found} events, {expected} were known). "
            "Let one run at a time train a model per user; go on with --resume."
        )


def _budget(row: PrivacyBudgetRow) -> PrivacyBudget:
    return PrivacyBudget(target_epsilon=row.target_epsilon, target_delta=row.target_delta)


def _broken(model: str, number: int) -> DatabaseError:
    return DatabaseError(
        f"The privacy ledger of {model!r} was changed at or before event {number}. "
        "Release nothing; compare it with a backup, and with the ledgers of earlier reports."
    )
