"""Offers, and what devices report about them."""

from __future__ import annotations

import secrets
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, insert, select
from sqlalchemy.exc import IntegrityError

from delta_updates.offer import Outcome, OutcomeReport
from server.errors import ConflictError, NotFoundError
from server.registry.records import OfferRecord, ReportRecord
from server.registry.rollout_devices import note_offered, note_outcome
from server.registry.tables import DeviceRow, OfferRow, ReportRow, VersionRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Row, Select
    from sqlalchemy.orm import Session

_FINAL = frozenset({Outcome.CONFIRMED, Outcome.REVERTED, Outcome.FAILED})
# The offer stands: the owner may raise the limit. But nobody waits for this device's report any more.
_COUNTED = _FINAL | {Outcome.DECLINED}
_LOCK_DEVICE: Final = (
    select(DeviceRow.device_id).where(DeviceRow.device_id == bindparam("offered_to")).with_for_update()
)


class OfferTransactions(Transactions):
    """The registry's transactions on offers and reports."""

    def open_offer(self, device_id: str, *, package_path: str, rollout_id: int | None = None) -> OfferRecord | None:
        """The offer of this package to this device that has not ended yet."""
        rows = self._glance(_still_open(is_rollout=rollout_id is not None), **_of(device_id, package_path, rollout_id))
        return offer_of(rows[0]) if rows else None

    def record_offer(
        self, device_id: str, *, model: str, version: int, package_path: str, rollout_id: int | None = None
    ) -> OfferRecord:
        """The offer of this package to this device: the one that is still open, or a new one.

        Raises:
            ConflictError: The rollout that makes the offer was stopped meanwhile.
        """
        # Without the session that watches: an offer changes the answer to nobody else.
        with self._connection() as connection:
            # Two questions of one device at once get one offer.
            connection.execute(_LOCK_DEVICE, {"offered_to": device_id})
            still_open = _still_open(is_rollout=rollout_id is not None)
            known = connection.execute(still_open, _of(device_id, package_path, rollout_id)).one_or_none()
            if known is not None:
                return offer_of(known)
            offer = OfferRecord(
                offer_id=_new_offer_id(self._now()),
                device_id=device_id,
                model=model,
                version=version,
                package_path=package_path,
                offered_at=self._now(),
                rollout_id=rollout_id,
            )
            connection.execute(insert(OfferRow), {**vars(offer), "is_open": True})
            if rollout_id is not None:
                note_offered(connection, rollout_id, device_id)
            return offer

    def record_outcome(self, device_id: str, report: OutcomeReport) -> int | None:
        """Keep what a device reports about one of its own offers; a repeated report changes nothing.

        Returns:
            The rollout that made the offer, when it is not over and this report says something new about its end.

        Raises:
            NotFoundError: This device was never made such an offer.
            ConflictError: The offer was about another version.
        """
        with self._write() as session:
            offer = session.get(OfferRow, report.offer_id)
            # Another device's offer is answered like one that never was.
            if offer is None or offer.device_id != device_id:
                raise NotFoundError(f"This device has no offer {report.offer_id!r}.")
            if offer.version != report.version:
                raise ConflictError(f"Offer {offer.offer_id} was about v{offer.version}, not v{report.version}.")
            try:
                with session.begin_nested():
                    session.add(_report_row(report, received_at=self._now()))
            except IntegrityError:
                return None
            is_counted = offer.rollout_id is not None and note_outcome(session, offer.rollout_id, device_id, report)
            if report.outcome is Outcome.CONFIRMED:
                _remember_confirmed(session, offer)
            if report.outcome not in _COUNTED:
                return None
            # Only ever closed: a decline that comes late opens no offer that has ended.
            offer.is_open = offer.is_open and report.outcome not in _FINAL
            return offer.rollout_id if is_counted else None

    def offers(self, device_id: str, *, limit: int | None = None) -> tuple[OfferRecord, ...]:
        """What a device was offered, newest first."""
        query = (
            select(OfferRow)
            .where(OfferRow.device_id == device_id)
            .order_by(OfferRow.offered_at.desc(), OfferRow.offer_id)
            .limit(limit)
        )
        with self._read() as session:
            return tuple(offer_of(row) for row in session.scalars(query))

    def reports(self, device_id: str, *, limit: int | None = None) -> tuple[ReportRecord, ...]:
        """What a device reported, newest first."""
        query = (
            select(ReportRow, OfferRow)
            .join(OfferRow, OfferRow.offer_id == ReportRow.offer_id)
            .where(OfferRow.device_id == device_id)
            .order_by(ReportRow.received_at.desc(), ReportRow.outcome)
            .limit(limit)
        )
        with self._read() as session:
            return tuple(report_record(report, offer) for report, offer in session.execute(query))


def _of(device_id: str, package_path: str, rollout_id: int | None) -> dict[str, object]:
    named: dict[str, object] = {"offered_to": device_id, "by_package": package_path}
    return named if rollout_id is None else {**named, "by_rollout": rollout_id}


@cache
def _still_open(*, is_rollout: bool) -> Select[Any]:
    return (
        select(*OfferRow.__table__.c)
        .where(
            OfferRow.device_id == bindparam("offered_to"),
            OfferRow.package_path == bindparam("by_package"),
            OfferRow.is_open,
            OfferRow.rollout_id == bindparam("by_rollout") if is_rollout else OfferRow.rollout_id.is_(None),
        )
        .limit(1)
    )


def _new_offer_id(now: datetime) -> str:
    """Random, and in the order of time: a large table can be divided by it, and what is old be dropped in one piece."""
    return f"{int(now.timestamp() * 1000):012x}{secrets.token_hex(10)}"


def _remember_confirmed(session: Session, offer: OfferRow) -> None:
    device = session.get_one(DeviceRow, offer.device_id)
    # A late report about an older offer must not take back a newer one.
    if device.installed_version is None or device.installed_version < offer.version:
        version = session.get_one(VersionRow, (offer.model, offer.version))
        device.installed_version, device.installed_hash = version.number, version.tree_hash


def offer_of(row: OfferRow | Row[Any]) -> OfferRecord:
    """A row as others see it."""
    return OfferRecord(
        offer_id=row.offer_id,
        device_id=row.device_id,
        model=row.model,
        version=row.version,
        package_path=row.package_path,
        offered_at=row.offered_at,
        rollout_id=row.rollout_id,
    )


def _report_row(report: OutcomeReport, *, received_at: datetime) -> ReportRow:
    return ReportRow(
        offer_id=report.offer_id,
        outcome=report.outcome.value,
        # PostgreSQL takes no NUL, and nobody wants a device's control characters in a terminal.
        reason="".join(character if character.isprintable() else " " for character in report.reason),
        bytes_downloaded=report.bytes_downloaded,
        apply_seconds=report.apply_seconds,
        received_at=received_at,
    )


def report_record(row: ReportRow, offer: OfferRow) -> ReportRecord:
    """A report's row, and the offer that it is about, as a value."""
    return ReportRecord(
        offer_id=row.offer_id,
        device_id=offer.device_id,
        version=offer.version,
        outcome=row.outcome,
        reason=row.reason,
        bytes_downloaded=row.bytes_downloaded,
        apply_seconds=row.apply_seconds,
        received_at=row.received_at,
    )
