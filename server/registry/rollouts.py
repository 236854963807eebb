"""Rollouts: made, changed by people and by what devices report; compare-and-set on the revision."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, cast, get_args

from sqlalchemy import Double, func, or_, select, update
from sqlalchemy import cast as sql_cast

from delta_updates import Outcome
from server.errors import ConflictError, NotFoundError
from server.registry.records import EVALUATE_EVERY, RolloutChangeRecord, RolloutFailureRecord, RolloutProgress
from server.registry.rollout_rows import devices_meant, find_rollout, launch_rollout, rollout_of, save_rollout
from server.registry.rollout_tables import RolloutChangeRow, RolloutDeviceRow, RolloutRow
from server.registry.tables import OfferRow, ReportRow, VersionRow
from server.registry.transactions import Transactions, lock_model
from server.rollouts import Counts, Health, Measured, Metric, advance, apply, change

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.orm import Session

    from server.rollouts import Action, Launch, Rollout, RolloutState


class RolloutTransactions(Transactions):
    """The registry's transactions on rollouts."""

    def create_rollout(self, model: str, version: int, launch: Launch) -> Rollout:
        """Make a rollout of a released version.

        Raises:
            NotFoundError: There is no such version.
            ConflictError: It is not released.
        """
        with self._write() as session:
            lock_model(session, model)
            row = session.get(VersionRow, (model, version))
            if row is None:
                raise NotFoundError(f"There is no v{version} of {model!r}. `lamella versions` lists what there is.")
            if row.state != "released":
                raise ConflictError(f"v{version} of {model!r} is {row.state}: only a released version is rolled out.")
            return launch_rollout(session, model=model, version=version, launch=launch, now=self._now())

    def rollout(self, rollout_id: int) -> Rollout:
        """One rollout.

        Raises:
            NotFoundError: There is none of this id.
        """
        with self._read() as session:
            return rollout_of(find_rollout(session, rollout_id))

    def rollouts(
        self, *, model: str | None = None, state: str | None = None, before: int | None = None, limit: int | None = None
    ) -> tuple[Rollout, ...]:
        """Rollouts, newest first; ``before`` is the last id of a page."""
        query = select(RolloutRow).order_by(RolloutRow.rollout_id.desc()).limit(limit)
        if model is not None:
            query = query.where(RolloutRow.model == model)
        if state is not None:
            query = query.where(RolloutRow.state == state)
        if before is not None:
            query = query.where(RolloutRow.rollout_id < before)
        with self._read() as session:
            return tuple(rollout_of(row) for row in session.scalars(query))

    def rollout_progress(self, rollout_id: int) -> RolloutProgress:
        """A rollout with what its devices reported so far, and what follows from that now.

        Raises:
            NotFoundError: There is none of this id.
        """
        with self._read() as session:
            rollout = rollout_of(find_rollout(session, rollout_id))
            health = _health(session, rollout)
            return RolloutProgress(
                rollout=rollout,
                phase=health.phase,
                total=health.total,
                quality=health.quality,
                remaining=sum(1 for _ in devices_meant(session, rollout)),
                outlook=advance(rollout, health, self._now()).reason,
            )

    def rollout_changes(self, rollout_id: int) -> tuple[RolloutChangeRecord, ...]:
        """What became of a rollout, oldest first."""
        query = (
            select(RolloutChangeRow)
            .where(RolloutChangeRow.rollout_id == rollout_id)
            .order_by(RolloutChangeRow.revision)
        )
        with self._read() as session:
            return tuple(_change(row) for row in session.scalars(query))

    def rollout_failures(self, rollout_id: int, *, limit: int = 10) -> tuple[RolloutFailureRecord, ...]:
        """Why devices could not take a rollout's version, the most frequent reason first."""
        return self._reasons(rollout_id, (Outcome.FAILED, Outcome.REVERTED), limit=limit)

    def rollout_declines(self, rollout_id: int, *, limit: int = 10) -> tuple[RolloutFailureRecord, ...]:
        """Why devices wanted no such version, the most frequent reason first."""
        return self._reasons(rollout_id, (Outcome.DECLINED,), limit=limit)

    def _reasons(
        self, rollout_id: int, outcomes: tuple[Outcome, ...], *, limit: int
    ) -> tuple[RolloutFailureRecord, ...]:
        reports = func.count()
        query = (
            select(ReportRow.outcome, ReportRow.reason, reports)
            .join(OfferRow, OfferRow.offer_id == ReportRow.offer_id)
            .where(OfferRow.rollout_id == rollout_id, ReportRow.outcome.in_(outcomes))
            .group_by(ReportRow.outcome, ReportRow.reason)
            .order_by(reports.desc(), ReportRow.reason)
            .limit(limit)
        )
        with self._read() as session:
            return tuple(
                RolloutFailureRecord(outcome=outcome, reason=reason, reports=count)
                for outcome, reason, count in session.execute(query)
            )

    def change_rollout(
        self, rollout_id: int, action: Action, *, seen_revision: int | None = None, reason: str = ""
    ) -> Rollout:
        """Do what an operator wants; of two who saw the same revision, one gets a conflict.

        Args:
            rollout_id: The rollout.
            action: What to do.
            seen_revision: The revision that the operator decided on; None: whatever it is.
            reason: Why, for others to read.

        Raises:
            NotFoundError: There is none of this id.
            ConflictError: It is another revision by now, or its state forbids this.
        """
        with self._write() as session:
            rollout = rollout_of(find_rollout(session, rollout_id))
            if seen_revision is not None and seen_revision != rollout.revision:
                raise ConflictError(
                    f"{rollout.name} changed since you looked (it is {rollout.state} now: {rollout.reason}). "
                    "Look at it and decide again: `lamella rollout show`."
                )
            now = self._now()
            after = change(rollout, action, now=now, reason=reason or f"by hand: {action}")
            return save_rollout(session, rollout, after, now=now)

    def settle_rollout(self, rollout_id: int, *, is_urgent: bool = False) -> Rollout:
        """Let a rollout do what its devices' reports say; of two processes that try at once, one does it.

        Args:
            rollout_id: The rollout.
            is_urgent: Count also when that was done a moment ago: a device has failed.
        """
        try:
            with self._write() as session:
                now = self._now()
                is_mine = _claim(session, rollout_id, now, is_urgent=is_urgent)
                rollout = rollout_of(find_rollout(session, rollout_id))
                if not is_mine:
                    return rollout
                after = apply(rollout, advance(rollout, _health(session, rollout), now), now=now)
                return rollout if after is rollout else save_rollout(session, rollout, after, now=now)
        except ConflictError:
            # Somebody changed it at this very moment; what they wanted counts.
            return self.rollout(rollout_id)


def _claim(session: Session, rollout_id: int, now: datetime, *, is_urgent: bool) -> bool:
    """Be the one who counts; the row stays locked until the transaction ends."""
    query = update(RolloutRow).where(RolloutRow.rollout_id == rollout_id, RolloutRow.state.in_(("running", "paused")))
    if not is_urgent:
        query = query.where(or_(RolloutRow.evaluated_at.is_(None), RolloutRow.evaluated_at <= now - EVALUATE_EVERY))
    claimed = session.execute(
        query.values(evaluated_at=now).returning(RolloutRow.rollout_id).execution_options(synchronize_session=False)
    ).one_or_none()
    return claimed is not None


def _health(session: Session, rollout: Rollout) -> Health:
    device = RolloutDeviceRow
    counted = session.execute(
        select(device.phase, device.outcome, func.count())
        .where(device.rollout_id == rollout.rollout_id)
        .group_by(device.phase, device.outcome)
    ).all()
    in_phase: Counter[str] = Counter()
    in_total: Counter[str] = Counter()
    for phase, outcome, count in counted:
        in_total[outcome] += count
        if phase == rollout.phase:
            in_phase[outcome] += count
    return Health(phase=_counts(in_phase), total=_counts(in_total), quality=_quality(session, rollout))


def _counts(by_outcome: Counter[str]) -> Counts:
    return Counts(
        offered=by_outcome.total(),
        confirmed=by_outcome[Outcome.CONFIRMED],
        reverted=by_outcome[Outcome.REVERTED],
        failed=by_outcome[Outcome.FAILED],
        declined=by_outcome[Outcome.DECLINED],
    )


def _quality(session: Session, rollout: Rollout) -> dict[Metric, Measured]:
    columns = (RolloutDeviceRow.loss_increase, RolloutDeviceRow.tokens_per_second, RolloutDeviceRow.memory_bytes)
    wanted = []
    for column in columns:
        value = sql_cast(column, Double)  # squares of bytes do not fit an integer
        wanted += [func.avg(value), func.avg(value * value), func.count(column)]
    values = session.execute(select(*wanted).where(RolloutDeviceRow.rollout_id == rollout.rollout_id)).one()
    return {
        metric: Measured(mean=mean, devices=devices, standard_error=_standard_error(mean, squares, devices))
        for metric, mean, squares, devices in zip(
            get_args(Metric), values[::3], values[1::3], values[2::3], strict=True
        )
        if devices
    }


def _standard_error(mean: float, mean_of_squares: float, count: int) -> float:
    if count < 2:  # noqa: PLR2004 - one value has no spread
        return 0.0
    variance = max(0.0, mean_of_squares - mean * mean) * count / (count - 1)
    return math.sqrt(variance / count)


def _change(row: RolloutChangeRow) -> RolloutChangeRecord:
    return RolloutChangeRecord(
        revision=row.revision,
        state=cast("RolloutState", row.state),
        phase=row.phase,
        reason=row.reason,
        changed_at=row.changed_at,
    )
