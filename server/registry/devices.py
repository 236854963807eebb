"""Devices: enrolment and credentials. Secrets are kept as hashes only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from server.errors import ConflictError, CredentialRefusedError, EnrolmentRefusedError, ForbiddenError, NotFoundError
from server.registry.records import DeviceRecord, EnrolmentTokenRecord
from server.registry.tables import DeviceRow, EnrolmentTokenRow, ModelRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

_SECRET_BYTES = 32
# The hash of nothing that anybody could show.
NO_CREDENTIAL = "0" * 64
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


def _sha256(secret: str) -> str:
    # No slow hash: the secrets are 32 random bytes, which nobody can guess through.
    return hashlib.sha256(secret.encode()).hexdigest()


def _row(session: Session, device_id: str) -> DeviceRow:
    row = session.get(DeviceRow, device_id)
    if row is None:
        raise NotFoundError(f"There is no device {device_id!r}. `lamella devices list` shows what there is.")
    return row


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


def _is_another_size(known: int | None, told: int | None) -> bool:
    """Whether a device's free disk is another than what is known by more than a tenth."""
    if known is None or told is None:
        return known is not told
    return abs(told - known) * 10 > max(known, 1)
