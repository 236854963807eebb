"""Chains of privacy events, budgets of populations, and keys of correlated noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select

from privacy.budget import PrivacyBudget
from privacy.chain import FIRST_HEAD, event_line, head_after
from privacy.event import PrivacyEvent
from server.errors import ConflictError, DatabaseError, NotFoundError
from server.registry.base_family import family_of
from server.registry.privacy_tables import ExampleBudgetRow, NoiseKeyRow, PrivacyBudgetRow, PrivacyChainRow
from server.registry.tables import ModelRow, PrivacyEventRow, RunRow
from server.registry.transactions import Transactions, lock_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement
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

    def user_events_for(self, model: str, *, base_hash: str) -> tuple[PrivacyEvent, ...]:
        """What a run of a model on a base starts from: all events of the model's own users, and of its base's others.

        The others are the users of models that were trained on the same base, on one that it was made from or on one
        that was made from it, unless one of the two is kept apart.
        """
        with self._read() as session:
            query = (
                select(PrivacyEventRow.event)
                .join(PrivacyChainRow, PrivacyChainRow.position == PrivacyEventRow.position)
                .join(RunRow, RunRow.run_id == PrivacyEventRow.run_id)
                .where(PrivacyChainRow.privacy_unit == "user", _charging(session, model, base_hash))
                .order_by(PrivacyEventRow.position)
            )
            return tuple(PrivacyEvent.model_validate_json(event) for event in session.scalars(query))

    def is_kept_apart(self, population: str) -> bool:
        """Whether the operator vouches that a population has nobody in common with other models on its base."""
        with self._read() as session:
            row = session.get(PrivacyBudgetRow, population)
            return row is not None and row.is_apart

    def set_user_budget(self, population: str, budget: PrivacyBudget, *, is_apart: bool | None = None) -> None:
        """Set or change what a population may be charged in all.

        Args:
            population: The model whose users are meant.
            budget: What they may be charged.
            is_apart: Whether none of them is a user of another model on the same base; None: as it was.

        Raises:
            NotFoundError: There is no such model.
        """
        with self._write() as session:
            if session.get(ModelRow, population) is None:
                raise _no_model(population)
            row = session.get(PrivacyBudgetRow, population)
            if row is None:
                row = PrivacyBudgetRow(population=population, is_apart=False)
                session.add(row)
            row.is_apart = row.is_apart if is_apart is None else is_apart
            row.target_epsilon, row.target_delta, row.set_at = budget.target_epsilon, budget.target_delta, self._now()

    def example_budget(self, model: str) -> PrivacyBudget | None:
        """What each example of a model's devices may be charged in all; None: nobody has set it yet."""
        with self._read() as session:
            row = session.get(ExampleBudgetRow, model)
            return None if row is None else _budget(row)

    def set_example_budget(self, model: str, budget: PrivacyBudget) -> None:
        """Set or change what each example of a model's devices may be charged in all.

        Raises:
            NotFoundError: There is no such model.
        """
        with self._write() as session:
            if session.get(ModelRow, model) is None:
                raise _no_model(model)
            row = session.get(ExampleBudgetRow, model)
            if row is None:
                row = ExampleBudgetRow(model=model)
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


def require_user_events(session: Session, model: str, base_hash: str, expected: int) -> None:
    """Refuse when another run has charged the same users, or those of their base, since their budget was looked at.

    Raises:
        ConflictError: It has.
    """
    for name in sorted({model, *_others_on(session, model, base_hash)}):  # in one order, so that nobody waits for ever
        lock_model(session, name)
    found = session.scalar(
        select(func.count())
        .select_from(PrivacyChainRow)
        .join(PrivacyEventRow, PrivacyEventRow.position == PrivacyChainRow.position)
        .join(RunRow, RunRow.run_id == PrivacyEventRow.run_id)
        .where(PrivacyChainRow.privacy_unit == "user", _charging(session, model, base_hash))
    )
    if found != expected:
        raise ConflictError(
            f"Another run charged the users of {model!r}, or of another model on its base, meanwhile ({found} events, "
            f"{expected} were known). Let one run at a time train a base per user; go on with --resume."
        )


def _charging(session: Session, model: str, base_hash: str) -> ColumnElement[bool]:
    """Runs whose events count against a model's users: its own on any base, and others' on this one and its kin."""
    others = _others_on(session, model, base_hash)
    return or_(
        RunRow.model == model, and_(RunRow.base_hash.in_(family_of(session, base_hash)), RunRow.model.in_(others))
    )


def _others_on(session: Session, model: str, base_hash: str) -> tuple[str, ...]:
    apart = set(session.scalars(select(PrivacyBudgetRow.population).where(PrivacyBudgetRow.is_apart)))
    if model in apart:
        return ()
    kin = family_of(session, base_hash)
    found = session.scalars(select(RunRow.model).where(RunRow.base_hash.in_(kin)).distinct())
    return tuple(sorted(set(found) - apart - {model}))


def _no_model(name: str) -> NotFoundError:
    return NotFoundError(f"There is no model {name!r}. `lamella versions` lists what there is.")


def _budget(row: PrivacyBudgetRow | ExampleBudgetRow) -> PrivacyBudget:
    return PrivacyBudget(target_epsilon=row.target_epsilon, target_delta=row.target_delta)


def _broken(model: str, number: int) -> DatabaseError:
    return DatabaseError(
        f"The privacy ledger of {model!r} was changed at or before event {number}. "
        "Release nothing; compare it with a backup, and with the ledgers of earlier reports."
    )
