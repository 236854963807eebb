"""The fleet as a whole, counted by the database: how many devices run what, since when, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Select, case, func, null, select

from delta_updates.offer import Outcome
from server.registry.asking import device_record
from server.registry.offers import report_record
from server.registry.tables import DeviceRow, OfferRow, ReportRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from server.registry.records import DeviceRecord, ReportRecord

_TROUBLES: Final = (Outcome.FAILED.value, Outcome.REVERTED.value)
# How much of `2026-03-01T12:34` names a minute, an hour and a day.
_MINUTE, _HOUR, _DAY = 16, 13, 10


@dataclass(frozen=True, kw_only=True)
class FleetCount:
    """How many devices said last that they run a version (None: nothing yet), and how many of them were seen lately."""

    model: str
    version: int | None
    devices: int
    seen_lately: int


@dataclass(frozen=True, kw_only=True)
class Move:
    """Devices that came to a version in one span of time; ``source`` None: they had none, or had not said which.

    ``is_new`` devices were enrolled then, and ``target`` is None for those that had nothing installed.
    """

    at: datetime
    source: int | None
    target: int | None
    devices: int
    is_new: bool


class FleetTransactions(Transactions):
    """The registry's questions about all devices at once; revoked devices are left out."""

    def fleet_counts(self, *, lately: timedelta) -> tuple[FleetCount, ...]:
        """Devices by model and version, by the database's own counting."""
        seen = func.sum(case((DeviceRow.last_seen_at >= self._now() - lately, 1), else_=0))
        query = (
            select(DeviceRow.model, DeviceRow.installed_version, func.count(), seen)
            .where(DeviceRow.revoked_at.is_(None))
            .group_by(DeviceRow.model, DeviceRow.installed_version)
        )
        with self._read() as session:
            counts = [
                FleetCount(model=model, version=version, devices=devices, seen_lately=int(seen_lately or 0))
                for model, version, devices, seen_lately in session.execute(query)
            ]
        return tuple(sorted(counts, key=lambda count: (count.model, count.version or 0)))

    def version_moves(self, model: str) -> tuple[Move, ...]:
        """How devices came to their versions, from enrolments and confirmed updates; by minute, hour or day."""
        with self._read() as session:
            first = session.scalar(
                select(func.min(DeviceRow.enrolled_at)).where(DeviceRow.model == model, DeviceRow.revoked_at.is_(None))
            )
            if first is None:
                return ()
            length = _bucket_length(self._now() - first)
            moves = [
                Move(at=_time(at), source=source, target=target, devices=devices, is_new=is_new)
                for query, is_new in (
                    (_enrolments(session, model, length), True),
                    (_updates(session, model, length), False),
                )
                for at, source, target, devices in session.execute(query)
            ]
        return tuple(sorted(moves, key=lambda move: (move.at, not move.is_new)))

    def outcomes(self, model: str, version: int) -> dict[str, int]:
        """How many devices reported which outcome of a version."""
        query = (
            select(ReportRow.outcome, func.count(OfferRow.device_id.distinct()))
            .join(OfferRow, OfferRow.offer_id == ReportRow.offer_id)
            .where(OfferRow.model == model, OfferRow.version == version)
            .group_by(ReportRow.outcome)
        )
        with self._read() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def troubles(self, *, limit: int) -> tuple[ReportRecord, ...]:
        """The newest reports of failed and reverted updates, of all devices."""
        query = (
            select(ReportRow, OfferRow)
            .join(OfferRow, OfferRow.offer_id == ReportRow.offer_id)
            .where(ReportRow.outcome.in_(_TROUBLES))
            .order_by(ReportRow.received_at.desc())
            .limit(limit)
        )
        with self._read() as session:
            return tuple(report_record(report, offer) for report, offer in session.execute(query))

    def find_devices(self, words: str, *, after: str = "", limit: int) -> tuple[DeviceRecord, ...]:
        """Devices whose id begins with ``words`` or whose name has them in it, by id; revoked ones included."""
        query = (
            select(DeviceRow)
            .where(
                DeviceRow.device_id > after,
                DeviceRow.device_id.startswith(words, autoescape=True)
                | DeviceRow.name.icontains(words, autoescape=True),
            )
            .order_by(DeviceRow.device_id)
            .limit(limit)
        )
        with self._read() as session:
            return tuple(device_record(row) for row in session.scalars(query))


def _bucket_length(span: timedelta) -> int:
    if span <= timedelta(hours=6):
        return _MINUTE
    return _HOUR if span <= timedelta(days=21) else _DAY


def _bucket(session: Session, column: Any, length: int) -> ColumnElement[str]:  # noqa: ANN401 - a mapped column
    """A point in time as text, cut to a span; the two databases write times with functions of their own."""
    if session.get_bind().dialect.name == "postgresql":
        whole: ColumnElement[str] = func.to_char(func.timezone("UTC", column), 'YYYY-MM-DD"T"HH24:MI')
    else:
        whole = func.strftime("%Y-%m-%dT%H:%M", column)
    return func.substr(whole, 1, length)


def _time(bucket: str) -> datetime:
    whole = bucket + "0000-01-01T00:00"[len(bucket) :]
    return datetime.strptime(whole, "%Y-%m-%dT%H:%M").replace(tzinfo=UTC)


def _confirmed(model: str) -> Select[Any]:
    before = func.lag(OfferRow.version).over(partition_by=OfferRow.device_id, order_by=ReportRow.received_at)
    return (
        select(ReportRow.received_at.label("at"), before.label("source"), OfferRow.version.label("target"))
        .join(OfferRow, OfferRow.offer_id == ReportRow.offer_id)
        .join(DeviceRow, DeviceRow.device_id == OfferRow.device_id)
        .where(OfferRow.model == model, ReportRow.outcome == Outcome.CONFIRMED.value, DeviceRow.revoked_at.is_(None))
    )


def _updates(session: Session, model: str, length: int) -> Select[Any]:
    each = _confirmed(model).subquery()
    at = _bucket(session, each.c.at, length).label("bucket")
    return select(at, each.c.source, each.c.target, func.count()).group_by(at, each.c.source, each.c.target)


def _enrolments(session: Session, model: str, length: int) -> Select[Any]:
    """Enrolled devices with what they had then: nothing when an update came later, else what they still have."""
    confirmed = (
        select(OfferRow.device_id)
        .join(ReportRow, ReportRow.offer_id == OfferRow.offer_id)
        .where(OfferRow.device_id == DeviceRow.device_id, ReportRow.outcome == Outcome.CONFIRMED.value)
        .exists()
    )
    each = (
        select(
            DeviceRow.enrolled_at.label("at"),
            case((confirmed, None), else_=DeviceRow.installed_version).label("target"),
        )
        .where(DeviceRow.model == model, DeviceRow.revoked_at.is_(None))
        .subquery()
    )
    at = _bucket(session, each.c.at, length).label("bucket")
    return select(at, null(), each.c.target, func.count()).group_by(at, each.c.target)
