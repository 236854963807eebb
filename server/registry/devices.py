"""Devices: enrolment and credentials. Secrets are kept as hashes only."""

from __future__ import annotations

import secrets
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.exc import IntegrityError

from server.errors import ConflictError, EnrolmentRefusedError, NotFoundError
from server.registry.asking import NO_CREDENTIAL, device_record, hash_of_secret, no_device
from server.registry.records import DeviceRecord, EnrolmentTokenRecord
from server.registry.tables import DeviceRow, EnrolmentTokenRow, ModelRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

_SECRET_BYTES = 32
SEEN_EVERY: Final = timedelta(minutes=5)
_SEEN_AT_ONCE: Final = 1000
_NOTE_TOLD: Final = (
    update(DeviceRow)
    .where(DeviceRow.device_id == bindparam("told_by"))
    .values(
        last_seen_at=bindparam("seen_at"),
        installed_version=bindparam("installed_version"),
        installed_hash=bindparam("installed_hash"),
        free_bytes=bindparam("free_bytes"),
    )
)
_NOTE_SEEN: Final = (
    update(DeviceRow)
    .where(
        DeviceRow.device_id.in_(bindparam("ids", expanding=True)),
        or_(DeviceRow.last_seen_at.is_(None), DeviceRow.last_seen_at <= bindparam("before")),
    )
    .values(last_seen_at=bindparam("seen_at"))
)


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
                token_sha256=hash_of_secret(token),
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
                    EnrolmentTokenRow.token_sha256 == hash_of_secret(token),
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
                credential_sha256=hash_of_secret(secret),
                enrolled_at=self._now(),
            )
            session.add(row)
            session.flush()
            session.get_one(EnrolmentTokenRow, used.token_id).device_id = device_id
            return device_record(row), f"{device_id}.{secret}"

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
    ) -> None:
        """Remember what a device says it runs, now."""
        told = {
            "told_by": device_id,
            "seen_at": self._now(),
            "installed_version": installed_version,
            "installed_hash": installed_hash,
            "free_bytes": free_bytes,
        }
        # Without the session that watches: it changes the answer to nobody else, and this device asks another question.
        with self._connection() as connection:
            if connection.execute(_NOTE_TOLD, told).rowcount == 0:
                raise no_device(device_id)

    def note_seen(self, device_ids: Iterable[str]) -> None:
        """Note that devices were here just now; what they run stays what they told.

        Who was noted in the last minutes is left as it is: a poll that changes nothing is not worth a write.
        """
        now = self._now()
        everyone = sorted(device_ids)
        for start in range(0, len(everyone), _SEEN_AT_ONCE):
            ids = everyone[start : start + _SEEN_AT_ONCE]
            # Without the session that watches: it changes no answer.
            with self._connection() as connection:
                connection.execute(_NOTE_SEEN, {"seen_at": now, "before": now - SEEN_EVERY, "ids": ids})


def _row(session: Session, device_id: str) -> DeviceRow:
    row = session.get(DeviceRow, device_id)
    if row is None:
        raise no_device(device_id)
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
