"""Offers as actions of hawkBit's protocol: numbered, one unfinished at a time, and how they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sqlalchemy import select

from delta_updates import Outcome
from server.errors import NotFoundError
from server.registry.ddi_records import ActionRecord, FailedAttempt
from server.registry.ddi_tables import ActionRow
from server.registry.offers import offer_of
from server.registry.tables import DeviceRow, OfferRow, ReportRow, VersionRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from server.registry.ddi_records import ActionState

_UNFINISHED = ("open", "canceling", "refused")
_MOST_ATTEMPTS = 20


class DdiActionTransactions(Transactions):
    """The registry's transactions on actions."""

    def unfinished_action(self, device_id: str) -> ActionRecord | None:
        """What a device was told to do and did not answer for yet; the oldest."""
        with self._read() as session:
            row = _unfinished(session, device_id)
            return None if row is None else _action(session, row)

    def open_action(self, device_id: str, offer_id: str) -> ActionRecord:
        """Put a number on an offer; a device has one unfinished action, which is the answer when there is one."""
        with self._write() as session:
            # The row of the device is the lock: two polls at once get the same action.
            session.get_one(DeviceRow, device_id, with_for_update=True)
            row = _unfinished(session, device_id)
            if row is None:
                row = ActionRow(offer_id=offer_id, device_id=device_id, state="open", created_at=self._now())
                session.add(row)
                session.flush()
            return _action(session, row)

    def action(self, device_id: str, action_id: int) -> ActionRecord:
        """An action of this device.

        Raises:
            NotFoundError: It never had such an action.
        """
        with self._read() as session:
            return _action(session, _own(session, device_id, action_id))

    def latest_action(self, device_id: str) -> ActionRecord | None:
        """What a device was told to do last, over or not; None when it never was told anything."""
        query = select(ActionRow).where(ActionRow.device_id == device_id).order_by(ActionRow.action_id.desc()).limit(1)
        with self._read() as session:
            row = session.scalar(query)
            return None if row is None else _action(session, row)

    def move_action(self, device_id: str, action_id: int, state: ActionState) -> None:
        """Note how far an action came; what is over stays over, and a canceled offer is made again when it is due.

        Raises:
            NotFoundError: The device never had such an action.
        """
        with self._write() as session:
            row = _own(session, device_id, action_id)
            if row.state == "closed" or (row.state == "canceled" and state != "closed"):
                return
            row.state = state
            if state in {"closed", "canceled"}:
                session.get_one(OfferRow, row.offer_id).is_open = False

    def failed_attempts(self, device_id: str, *, model: str, version: int) -> tuple[FailedAttempt, ...]:
        """The last times that a device could not install a version, newest first."""
        query = (
            select(OfferRow.package_path, ReportRow.received_at)
            .join(ReportRow, ReportRow.offer_id == OfferRow.offer_id)
            .where(
                OfferRow.device_id == device_id,
                OfferRow.model == model,
                OfferRow.version == version,
                ReportRow.outcome == Outcome.FAILED.value,
            )
            .order_by(ReportRow.received_at.desc())
            .limit(_MOST_ATTEMPTS)
        )
        with self._read() as session:
            return tuple(FailedAttempt(package_path=path, at=at) for path, at in session.execute(query))

    def installed_action(self, device_id: str) -> ActionRecord | None:
        """The action by which a device came to what it runs; None: in another way, or it was withdrawn."""
        with self._read() as session:
            row = session.scalar(
                select(ActionRow)
                .join(OfferRow, OfferRow.offer_id == ActionRow.offer_id)
                .join(ReportRow, ReportRow.offer_id == OfferRow.offer_id)
                .join(DeviceRow, DeviceRow.device_id == ActionRow.device_id)
                .join(VersionRow, (VersionRow.model == OfferRow.model) & (VersionRow.number == OfferRow.version))
                .where(
                    ActionRow.device_id == device_id,
                    OfferRow.version == DeviceRow.installed_version,
                    ReportRow.outcome == Outcome.CONFIRMED.value,
                    VersionRow.state == "released",
                )
                .order_by(ActionRow.action_id.desc())
                .limit(1)
            )
            return None if row is None else _action(session, row)


def _unfinished(session: Session, device_id: str) -> ActionRow | None:
    return session.scalar(
        select(ActionRow)
        .where(ActionRow.device_id == device_id, ActionRow.state.in_(_UNFINISHED))
        .order_by(ActionRow.action_id)
        .limit(1)
    )


def _own(session: Session, device_id: str, action_id: int) -> ActionRow:
    row = session.get(ActionRow, action_id)
    # Another device's action is answered like one that never was.
    if row is None or row.device_id != device_id:
        raise NotFoundError(f"This controller has no action {action_id}.")
    return row


def _action(session: Session, row: ActionRow) -> ActionRecord:
    offer = session.get_one(OfferRow, row.offer_id)
    return ActionRecord(action_id=row.action_id, state=cast("ActionState", row.state), offer=offer_of(offer))
