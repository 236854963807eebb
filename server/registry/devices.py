"""Devices: enrolment, credentials, offers and what devices report. Secrets are kept as hashes only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from delta_updates.offer import Outcome, OutcomeReport
from server.errors import ConflictError, CredentialRefusedError, EnrolmentRefusedError, ForbiddenError, NotFoundError
from server.registry.records import DeviceRecord, EnrolmentTokenRecord, OfferRecord, ReportRecord
from server.registry.rollout_devices import note_offered, note_outcome
from server.registry.tables import DeviceRow, EnrolmentTokenRow, ModelRow, OfferRow, ReportRow, VersionRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

_SECRET_BYTES = 32
# The hash of nothing that anybody could show.
NO_CREDENTIAL = "0" * 64
_FINAL = frozenset({Outcome.CONFIRMED, Outcome.REVERTED, Outcome.FAILED})
# The offer stands: the owner may raise the limit. But nobody waits for this device's report any more.
_COUNTED = _FINAL | {Outcome.DECLINED}
# A poll that changes nothing is not worth a write.
SEEN_EVERY = timedelta(minutes=5)


class DeviceTransactions(Transactions):
    """The registry's transactions on devices."""

    def create_enrolment_token(
        self, model: str, *, valid_for: timedelta, uses: int = 1
    ) -> tuple[str, EnrolmentTokenRecord]:
        """Make a token that enrols ``uses`` devices; the token is returned once and stored nowhere.

        Raises:
            NotFoundError: There is no such model.
        """
        token = secrets.token_urlsafe(_SECRET_BYTES)
        with self._write() as session:
            if session.get(ModelRow, model) is None:
                raise NotFoundError(f"There is no model {model!r}. Import a base first: `lamella base import`.")
            row = EnrolmentTokenRow(
                token_sha256=_sha256(token),
                model=model,
                created_at=self._now(),
                expires_at=self._now() + valid_for,
                max_uses=uses,
                uses=0,
            )
            session.add(row)
            session.flush()
            return token, _token(row)

    def enrolment_tokens(self, *, after: int = 0, limit: int | None = None) -> tuple[EnrolmentTokenRecord, ...]:
        """All tokens in the order of their making; ``after`` is the last token id of a page."""
        query = (
            select(EnrolmentTokenRow)
            .where(EnrolmentTokenRow.token_id > after)
            .order_by(EnrolmentTokenRow.token_id)
            .limit(limit)
        )
        with self._read() as session:
            return tuple(_token(row) for row in session.scalars(query))

    def newest_enrolment_tokens(
        self, *, before: int | None = None, limit: int | None = None
    ) -> tuple[EnrolmentTokenRecord, ...]:
        """Tokens, the newest first; ``before`` is the last token id of a page."""
        query = select(EnrolmentTokenRow).order_by(EnrolmentTokenRow.token_id.desc()).limit(limit)
        if before is not None:
            query = query.where(EnrolmentTokenRow.token_id < before)
        with self._read() as session:
            return tuple(_token(row) for row in session.scalars(query))

    def revoke_enrolment_token(self, token_id: int) -> EnrolmentTokenRecord:
        """Let a token enrol no further device; those that it enrolled stay.

        Raises:
            NotFoundError: There is no such token.
        """
        with self._write() as session:
            row = session.get(EnrolmentTokenRow, token_id)
            if row is None:
                raise NotFoundError(f"There is no enrolment token {token_id}. `lamella devices invitations` lists all.")
            row.revoked_at = row.revoked_at or self._now()
            return _token(row)

    def enrol(self, token: str, *, name: str) -> tuple[DeviceRecord, str]:
        """Turn a token into a device and its credential, which is returned once.

        Of two who use the last use of a token at the same moment, one is refused.

        Raises:
            EnrolmentRefusedError: Unknown, used up, revoked or expired.
        """
        device_id, secret = uuid.uuid4().hex, secrets.token_urlsafe(_SECRET_BYTES)
        with self._write() as session:
            used = session.execute(
                update(EnrolmentTokenRow)
                .where(
                    EnrolmentTokenRow.token_sha256 == _sha256(token),
                    EnrolmentTokenRow.uses < EnrolmentTokenRow.max_uses,
                    EnrolmentTokenRow.revoked_at.is_(None),
                    EnrolmentTokenRow.expires_at > self._now(),
                )
                .values(used_at=self._now(), uses=EnrolmentTokenRow.uses + 1)
                .returning(EnrolmentTokenRow.token_id, EnrolmentTokenRow.model)
                .execution_options(synchronize_session=False)
            ).one_or_none()
            if used is None:
                raise EnrolmentRefusedError(
                    "This enrolment token is unknown, was used already, was revoked or has expired. "
                    "Ask the operator for a new one."
                )
            row = DeviceRow(
                device_id=device_id,
                name=name,
                model=used.model,
                credential_sha256=_sha256(secret),
                enrolled_at=self._now(),
            )
            session.add(row)
            session.flush()
            session.get_one(EnrolmentTokenRow, used.token_id).device_id = device_id
            return device_record(row), f"{device_id}.{secret}"

    def authenticate(self, credential: str) -> DeviceRecord:
        """The device that a credential was given to.

        Raises:
            CredentialRefusedError: Nobody was given this credential.
            ForbiddenError: The device was revoked.
        """
        device_id, _, secret = credential.partition(".")
        with self._read() as session:
            row = session.get(DeviceRow, device_id)
            expected = row.credential_sha256 if row is not None else NO_CREDENTIAL
            if not hmac.compare_digest(_sha256(secret), expected) or row is None:
                raise CredentialRefusedError("This device credential is unknown here. Enrol the device again.")
            return device_record(_allowed(row))

    def device_with_key(self, device_id: str, require_by: Callable[[str | None], None]) -> DeviceRecord:
        """The device that a signed request says it is of.

        Args:
            device_id: What the request says.
            require_by: Raises unless the request was signed with this public key; None when there is no such device.

        Raises:
            ForbiddenError: The device was revoked.
        """
        with self._read() as session:
            row = session.get(DeviceRow, device_id)
            require_by(row.public_key if row is not None else None)
            return device_record(_allowed(_row(session, device_id)))

    def set_device_key(self, device_id: str, public_key: str) -> DeviceRecord:
        """Know a device by its key from now on; its credential, or the key before, is forgotten.

        Raises:
            ConflictError: It is another device's key.
        """
        try:
            with self._write() as session:
                row = _row(session, device_id)
                row.public_key, row.credential_sha256 = public_key, NO_CREDENTIAL
                session.flush()
                return device_record(row)
        except IntegrityError as error:
            raise ConflictError("Another device has this key. Make a new one.") from error

    def devices(
        self, *, model: str | None = None, after: str = "", limit: int | None = None
    ) -> tuple[DeviceRecord, ...]:
        """Enrolled devices by id, revoked ones included; ``after`` is the last device id of a page."""
        query = select(DeviceRow).where(DeviceRow.device_id > after).order_by(DeviceRow.device_id).limit(limit)
        if model is not None:
            query = query.where(DeviceRow.model == model)
        with self._read() as session:
            return tuple(device_record(row) for row in session.scalars(query))

    def device(self, device_id: str) -> DeviceRecord:
        """One device.

        Raises:
            NotFoundError: There is no such device.
        """
        with self._read() as session:
            return device_record(_row(session, device_id))

    def revoke_device(self, device_id: str) -> DeviceRecord:
        """Refuse a device's credential from now on."""
        with self._write() as session:
            row = _row(session, device_id)
            row.revoked_at = row.revoked_at or self._now()
            return device_record(row)

    def record_check(
        self,
        device_id: str,
        *,
        installed_version: int | None,
        installed_hash: str | None,
        free_bytes: int | None = None,
        known: DeviceRecord | None = None,
    ) -> None:
        """Remember what a device says it runs; ``known`` is what the registry said of it just now.

        Free disk bytes differ a little with every question, which is not worth a write.
        """
        known = known or self.device(device_id)
        is_recent = known.last_seen_at is not None and self._now() - known.last_seen_at < SEEN_EVERY
        is_same = (known.installed_version, known.installed_hash) == (installed_version, installed_hash)
        if is_recent and is_same and not _is_another_size(known.free_bytes, free_bytes):
            return
        with self._write() as session:
            row = _row(session, device_id)
            row.last_seen_at = self._now()
            row.installed_version, row.installed_hash = installed_version, installed_hash
            row.free_bytes = free_bytes

    def open_offer(self, device_id: str, *, package_path: str, rollout_id: int | None = None) -> OfferRecord | None:
        """The offer of this package to this device that has not ended yet."""
        with self._read() as session:
            row = session.scalar(_still_open(device_id, package_path, rollout_id))
            return None if row is None else offer_of(row)

    def record_offer(
        self, device_id: str, *, model: str, version: int, package_path: str, rollout_id: int | None = None
    ) -> OfferRecord:
        """The offer of this package to this device: the one that is still open, or a new one.

        Raises:
            ConflictError: The rollout that makes the offer was stopped meanwhile.
        """
        known = self.open_offer(device_id, package_path=package_path, rollout_id=rollout_id)
        if known is not None:
            return known
        with self._write() as session:
            # Two questions of one device at once get one offer.
            session.get(DeviceRow, device_id, with_for_update=True)
            made_meanwhile = session.scalar(_still_open(device_id, package_path, rollout_id))
            if made_meanwhile is not None:
                return offer_of(made_meanwhile)
            row = OfferRow(
                offer_id=_new_offer_id(self._now()),
                device_id=device_id,
                model=model,
                version=version,
                package_path=package_path,
                is_open=True,
                offered_at=self._now(),
                rollout_id=rollout_id,
            )
            session.add(row)
            session.flush()
            if rollout_id is not None:
                note_offered(session, rollout_id, device_id)
            return offer_of(row)

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
            offer.is_open = report.outcome not in _FINAL
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


def _still_open(device_id: str, package_path: str, rollout_id: int | None) -> Select[OfferRow]:
    return (
        select(OfferRow)
        .where(
            OfferRow.device_id == device_id,
            OfferRow.package_path == package_path,
            OfferRow.is_open,
            OfferRow.rollout_id.is_(None) if rollout_id is None else OfferRow.rollout_id == rollout_id,
        )
        .limit(1)
    )


def _sha256(secret: str) -> str:
    # No slow hash: the secrets are 32 random bytes, which nobody can guess through.
    return hashlib.sha256(secret.encode()).hexdigest()


def _new_offer_id(now: datetime) -> str:
    """Random, and in the order of time: a large table can be divided by it, and what is old be dropped in one piece."""
    return f"{int(now.timestamp() * 1000):012x}{secrets.token_hex(10)}"


def _row(session: Session, device_id: str) -> DeviceRow:
    row = session.get(DeviceRow, device_id)
    if row is None:
        raise NotFoundError(f"There is no device {device_id!r}. `lamella devices list` shows what there is.")
    return row


def _remember_confirmed(session: Session, offer: OfferRow) -> None:
    device = session.get_one(DeviceRow, offer.device_id)
    # A late report about an older offer must not take back a newer one.
    if device.installed_version is None or device.installed_version < offer.version:
        version = session.get_one(VersionRow, (offer.model, offer.version))
        device.installed_version, device.installed_hash = version.number, version.tree_hash


def device_record(row: DeviceRow) -> DeviceRecord:
    """A device's row as a value."""
    return DeviceRecord(
        device_id=row.device_id,
        name=row.name,
        model=row.model,
        enrolled_at=row.enrolled_at,
        last_seen_at=row.last_seen_at,
        revoked_at=row.revoked_at,
        installed_version=row.installed_version,
        installed_hash=row.installed_hash,
        free_bytes=row.free_bytes,
        has_key=row.public_key is not None,
    )


def _allowed(row: DeviceRow) -> DeviceRow:
    if row.revoked_at is not None:
        raise ForbiddenError("This device was revoked by the operator. Enrol it again to use the service.")
    return row


def _token(row: EnrolmentTokenRow) -> EnrolmentTokenRecord:
    return EnrolmentTokenRecord(
        token_id=row.token_id,
        model=row.model,
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        device_id=row.device_id,
        max_uses=row.max_uses,
        uses=row.uses,
        revoked_at=row.revoked_at,
    )


def offer_of(row: OfferRow) -> OfferRecord:
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


def _is_another_size(known: int | None, told: int | None) -> bool:
    """Whether a device's free disk is another than what is known by more than a tenth."""
    if known is None or told is None:
        return known is not told
    return abs(told - known) * 10 > max(known, 1)
