"""Runs, rounds and privacy events: a round, its events and its adapter are written down in one transaction."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, cast

from sqlalchemy import select, tuple_

from privacy.event import PrivacyEvent
from server.errors import ConflictError, InvalidRecordError, NotFoundError
from server.registry.base_family import family_of
from server.registry.privacy import chain_events, require_user_events
from server.registry.privacy_tables import PrivacyChainRow
from server.registry.records import RoundRecord, RunRecord
from server.registry.tables import PrivacyEventRow, RoundRow, RunRow, VersionRow
from server.registry.transactions import Transactions, require_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from privacy.event import PrivacyUnit
    from server.registry.records import RunStatus

_MOST_IDS = 500  # in one query; SQLite binds 999 values in its older builds


class RunTransactions(Transactions):
    """The registry's transactions on federated runs."""

    def create_run(
        self,
        run_id: str,
        *,
        model: str,
        recipe: Mapping[str, Any],
        base_version: int,
        base_hash: str,
        parent_version: int | None,
    ) -> RunRecord:
        """Begin a run on a base that the registry knows.

        Raises:
            ConflictError: There is a run of that name.
            NotFoundError: There is no such base or parent version.
            InvalidRecordError: The base version has another hash, or the recipe has no JSON.
        """
        require_json(recipe=dict(recipe))
        with self._write() as session:
            if session.get(RunRow, run_id) is not None:
                raise ConflictError(f"There is a run {run_id!r} already. Choose another name, or resume it.")
            for number in {base_version, parent_version} - {None}:
                if session.get(VersionRow, (model, number)) is None:
                    raise NotFoundError(f"There is no v{number} of {model!r}, so no run can start from it.")
            base = session.get_one(VersionRow, (model, base_version))
            if base.base_hash != base_hash:
                raise InvalidRecordError(f"v{base_version} of {model!r} has base {base.base_hash}, not {base_hash}.")
            row = RunRow(
                run_id=run_id,
                model=model,
                recipe=dict(recipe),
                base_version=base_version,
                base_hash=base_hash,
                parent_version=parent_version,
                status="running",
                reason="",
                started_at=self._now(),
            )
            session.add(row)
            return _run(row)

    def finish_run(self, run_id: str, *, status: Literal["completed", "failed"], reason: str = "") -> None:
        """Write down how a run ended."""
        with self._write() as session:
            row = _row(session, run_id)
            row.status, row.reason, row.finished_at = status, reason, self._now()

    def run(self, run_id: str) -> RunRecord:
        """One run.

        Raises:
            NotFoundError: There is no such run.
        """
        with self._read() as session:
            return _run(_row(session, run_id))

    def runs(
        self, model: str | None = None, *, after: str | None = None, limit: int | None = None
    ) -> tuple[RunRecord, ...]:
        """All runs, newest first; ``after`` is the last run id of a page.

        Raises:
            NotFoundError: There is no run ``after``.
        """
        query = select(RunRow).order_by(RunRow.started_at.desc(), RunRow.run_id.desc()).limit(limit)
        if model is not None:
            query = query.where(RunRow.model == model)
        with self._read() as session:
            if after is not None:
                last = _row(session, after)
                query = query.where(tuple_(RunRow.started_at, RunRow.run_id) < (last.started_at, last.run_id))
            return tuple(_run(row) for row in session.scalars(query))

    def record_round(  # noqa: PLR0913 - a round is written whole or not at all
        self,
        run_id: str,
        server_round: int,
        *,
        status: str,
        replies: int,
        failures: Mapping[str, str],
        held_out_loss: float | None,
        events: Sequence[PrivacyEvent],
        artifacts: Mapping[str, str],
        facts: Mapping[str, Any],
        known_user_events: int | None = None,
    ) -> None:
        """Write down a finished round: its privacy events and its adapter, all or nothing.

        `known_user_events` is how many events per user the caller knew when it checked their budget.

        A run that had failed and goes on is running again.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: The round, or one of its events, is recorded already; or another run has charged the users.
            InvalidRecordError: An event is of another round, or a value is not finite or has no JSON.
        """
        _check_round(run_id, server_round, held_out_loss, events)
        require_json(failures=dict(failures), artifacts=dict(artifacts), facts=dict(facts))
        with self._write() as session:
            run = _row(session, run_id)
            if session.get(RoundRow, (run_id, server_round)) is not None:
                raise ConflictError(f"Round {server_round} of {run_id!r} is recorded already.")
            _refuse_known_events(session, events)
            if known_user_events is not None:
                require_user_events(session, run.model, run.base_hash, known_user_events)
            run.status, run.reason, run.finished_at = "running", "", None
            session.add(
                RoundRow(
                    run_id=run_id,
                    server_round=server_round,
                    status=status,
                    replies=replies,
                    failures=dict(failures),
                    held_out_loss=held_out_loss,
                    artifacts=dict(artifacts),
                    facts=dict(facts),
                    recorded_at=self._now(),
                )
            )
            session.flush()
            rows = [_event_row(event) for event in events]
            session.add_all(rows)
            session.flush()
            chain_events(session, run.model, rows, events)

    def known_events(self, event_ids: Sequence[str]) -> frozenset[str]:
        """Those of the privacy events that are recorded already, for whatever run and device."""
        with self._read() as session:
            known: set[str] = set()
            for start in range(0, len(event_ids), _MOST_IDS):
                part = event_ids[start : start + _MOST_IDS]
                query = select(PrivacyEventRow.event_id).where(PrivacyEventRow.event_id.in_(part))
                known.update(session.scalars(query))
            return frozenset(known)

    def rounds(self, run_id: str) -> tuple[RoundRecord, ...]:
        """The rounds of a run, in order."""
        with self._read() as session:
            rows = session.scalars(select(RoundRow).where(RoundRow.run_id == run_id).order_by(RoundRow.server_round))
            return tuple(_round(row) for row in rows)

    def last_round(self, run_id: str) -> RoundRecord | None:
        """The round of a run with the highest number."""
        query = select(RoundRow).where(RoundRow.run_id == run_id).order_by(RoundRow.server_round.desc()).limit(1)
        with self._read() as session:
            row = session.scalar(query)
            return None if row is None else _round(row)

    def privacy_events(
        self,
        *,
        run_id: str | None = None,
        device_id: str | None = None,
        model: str | None = None,
        base_hash: str | None = None,
        privacy_unit: PrivacyUnit | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> tuple[PrivacyEvent, ...]:
        """Privacy events in the order in which they were recorded; ``after`` is the last event id of a page.

        Those of a ``base_hash`` are on it, on what it was made from, and on what was made from it.

        Those of a ``device_id`` are per example; who took part in an event per user is in the event.

        Raises:
            NotFoundError: There is no event ``after``.
        """
        query = select(PrivacyEventRow.event).order_by(PrivacyEventRow.position).limit(limit)
        if run_id is not None:
            query = query.where(PrivacyEventRow.run_id == run_id)
        if device_id is not None:
            query = query.where(PrivacyEventRow.device_id == device_id)
        if model is not None or base_hash is not None:
            query = query.join(RunRow, RunRow.run_id == PrivacyEventRow.run_id)
        if model is not None:
            query = query.where(RunRow.model == model)
        if base_hash is not None:
            with self._read() as session:
                kin = family_of(session, base_hash)
            query = query.where(RunRow.base_hash.in_(kin))
        if privacy_unit is not None:
            query = query.join(PrivacyChainRow, PrivacyChainRow.position == PrivacyEventRow.position)
            query = query.where(PrivacyChainRow.privacy_unit == privacy_unit)
        with self._read() as session:
            if after is not None:
                position = session.scalar(select(PrivacyEventRow.position).where(PrivacyEventRow.event_id == after))
                if position is None:
                    raise NotFoundError(f"There is no privacy event {after!r}.")
                query = query.where(PrivacyEventRow.position > position)
            return tuple(PrivacyEvent.model_validate_json(event) for event in session.scalars(query))


def _row(session: Session, run_id: str) -> RunRow:
    row = session.get(RunRow, run_id)
    if row is None:
        raise NotFoundError(f"There is no run {run_id!r}. `lamella runs` lists what there is.")
    return row


def _check_round(run_id: str, server_round: int, held_out_loss: float | None, events: Sequence[PrivacyEvent]) -> None:
    if held_out_loss is not None and not math.isfinite(held_out_loss):
        raise InvalidRecordError(f"Round {server_round} of {run_id!r} has held-out loss {held_out_loss}: not finite.")
    for event in events:
        if (event.run_id, event.server_round) != (run_id, server_round):
            raise InvalidRecordError(
                f"Event {event.event_id} is of round {event.server_round} of {event.run_id!r}, "
                f"not of round {server_round} of {run_id!r}."
            )


def _refuse_known_events(session: Session, events: Sequence[PrivacyEvent]) -> None:
    ids = [event.event_id for event in events]
    known = set(session.scalars(select(PrivacyEventRow.event_id).where(PrivacyEventRow.event_id.in_(ids))))
    known |= {event_id for event_id in ids if ids.count(event_id) > 1}
    if known:
        raise ConflictError(f"Privacy events are charged once; recorded already: {', '.join(sorted(known))}.")


def _event_row(event: PrivacyEvent) -> PrivacyEventRow:
    return PrivacyEventRow(
        event_id=event.event_id,
        run_id=event.run_id,
        server_round=event.server_round,
        device_id=event.device_id or "",
        event=event.model_dump_json(exclude_none=True),
    )


def _run(row: RunRow) -> RunRecord:
    return RunRecord(
        run_id=row.run_id,
        model=row.model,
        recipe=row.recipe,
        base_version=row.base_version,
        base_hash=row.base_hash,
        parent_version=row.parent_version,
        status=cast("RunStatus", row.status),
        reason=row.reason,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def _round(row: RoundRow) -> RoundRecord:
    return RoundRecord(
        run_id=row.run_id,
        server_round=row.server_round,
        status=row.status,
        replies=row.replies,
        failures=row.failures,
        held_out_loss=row.held_out_loss,
        artifacts=row.artifacts,
        facts=row.facts,
        recorded_at=row.recorded_at,
    )
