"""Operators: accounts with roles, API tokens, and sessions of the console. Secrets are kept as hashes only."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Final

from sqlalchemy import delete, select, update

from server.errors import ConflictError, CredentialRefusedError, InvalidRecordError, NotFoundError
from server.passwords import check_password, hash_secret, is_secret
from server.registry.operator_records import OperatorRecord, OperatorTokenRecord, Role
from server.registry.operator_tables import OperatorRow, OperatorTokenRow, SessionRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from datetime import timedelta

    from sqlalchemy.orm import Session

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_LABEL_LENGTH: Final = 64
_SECRET_BYTES: Final = 32


class OperatorTransactions(Transactions):
    """The registry's transactions on operators."""

    def add_operator(self, name: str, *, role: Role, password: str | None = None) -> OperatorRecord:
        """Make an account; without a password it can hold API tokens only.

        Raises:
            InvalidRecordError: The name or the password does not fit.
            ConflictError: The name is taken, or was: a name in the audit log means one person.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRecordError(
                f"{name!r} is no operator's name: 1 to 64 of a-z, 0-9 and . _ @ -, beginning with a letter or digit."
            )
        hashed = None if password is None else hash_secret(check_password(password))
        with self._write() as session:
            if session.get(OperatorRow, name) is not None:
                raise ConflictError(f"There is, or was, an operator {name!r}. Choose another name.")
            row = OperatorRow(name=name, role=role.value, password_hash=hashed, created_at=self._now())
            session.add(row)
            return _operator(row)

    def operators(self) -> tuple[OperatorRecord, ...]:
        """All accounts by name, removed ones included."""
        with self._read() as session:
            return tuple(_operator(row) for row in session.scalars(select(OperatorRow).order_by(OperatorRow.name)))

    def set_password(self, name: str, password: str) -> OperatorRecord:
        """Give an operator a new password, and end the sessions that the old one began.

        Raises:
            NotFoundError: There is no such operator.
            InvalidRecordError: The password does not fit.
        """
        hashed = hash_secret(check_password(password))
        with self._write() as session:
            row = _active(session, name)
            row.password_hash = hashed
            session.execute(delete(SessionRow).where(SessionRow.operator == name))
            return _operator(row)

    def remove_operator(self, name: str) -> OperatorRecord:
        """Close an account: its sessions end and its tokens are revoked.

        Raises:
            NotFoundError: There is no such operator.
        """
        with self._write() as session:
            row = _active(session, name)
            row.removed_at, row.password_hash = self._now(), None
            session.execute(delete(SessionRow).where(SessionRow.operator == name))
            session.execute(
                update(OperatorTokenRow)
                .where(OperatorTokenRow.operator == name, OperatorTokenRow.revoked_at.is_(None))
                .values(revoked_at=self._now())
            )
            return _operator(row)

    def operator_by_password(self, name: str, password: str) -> OperatorRecord:
        """The operator who logs in; it takes equally long whether there is such a name or not.

        Raises:
            CredentialRefusedError: No such name, no password, or another one.
        """
        with self._read() as session:
            row = session.get(OperatorRow, name) if _NAME.fullmatch(name) else None
            hashed, record = (row.password_hash, _operator(row)) if row is not None else (None, None)
        if not is_secret(password, hashed) or record is None or record.removed_at is not None:
            raise CredentialRefusedError("This name and password do not belong together.")
        return record

    def create_operator_token(
        self, operator: str, *, label: str, valid_for: timedelta
    ) -> tuple[str, OperatorTokenRecord]:
        """Make an API token with its operator's role; the token is returned once and stored nowhere.

        Raises:
            NotFoundError: There is no such operator.
            InvalidRecordError: The label does not fit.
        """
        if not 0 < len(label) <= _LABEL_LENGTH or not label.isprintable():
            raise InvalidRecordError(f"A token's label has 1 to {_LABEL_LENGTH} printable characters.")
        token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(_SECRET_BYTES)
        hashed = hash_secret(secret)
        with self._write() as session:
            row = OperatorTokenRow(
                token_id=token_id,
                operator=_active(session, operator).name,
                label=label,
                secret_hash=hashed,
                created_at=self._now(),
                expires_at=self._now() + valid_for,
            )
            session.add(row)
            return f"{token_id}.{secret}", _token(row)

    def operator_tokens(self) -> tuple[OperatorTokenRecord, ...]:
        """All API tokens, the newest first."""
        query = select(OperatorTokenRow).order_by(OperatorTokenRow.created_at.desc(), OperatorTokenRow.token_id)
        with self._read() as session:
            return tuple(_token(row) for row in session.scalars(query))

    def revoke_operator_token(self, token_id: str) -> OperatorTokenRecord:
        """Refuse an API token from now on.

        Raises:
            NotFoundError: There is no such token.
        """
        with self._write() as session:
            row = session.get(OperatorTokenRow, token_id)
            if row is None:
                raise NotFoundError(f"There is no token {token_id!r}. `lamella operators token list` shows all.")
            row.revoked_at = row.revoked_at or self._now()
            return _token(row)

    def usable_operator_token(self, token_id: str) -> tuple[OperatorRecord, str] | None:
        """The operator and the secret's hash of a token that has not expired and is not revoked."""
        query = (
            select(OperatorRow, OperatorTokenRow.secret_hash)
            .join(OperatorTokenRow, OperatorTokenRow.operator == OperatorRow.name)
            .where(
                OperatorTokenRow.token_id == token_id,
                OperatorTokenRow.revoked_at.is_(None),
                OperatorTokenRow.expires_at > self._now(),
                OperatorRow.removed_at.is_(None),
            )
        )
        with self._read() as session:
            found = session.execute(query).one_or_none()
            return None if found is None else (_operator(found[0]), found[1])

    def start_session(self, operator: str, *, valid_for: timedelta) -> str:
        """Begin a session of the console; answers with its cookie, and forgets sessions that are over."""
        cookie = secrets.token_urlsafe(_SECRET_BYTES)
        with self._write() as session:
            session.execute(delete(SessionRow).where(SessionRow.expires_at <= self._now()))
            session.add(
                SessionRow(
                    session_sha256=_sha256(cookie),
                    operator=_active(session, operator).name,
                    started_at=self._now(),
                    expires_at=self._now() + valid_for,
                )
            )
        return cookie

    def session_operator(self, cookie: str) -> OperatorRecord | None:
        """Whose session a cookie is; None when it is over or never was."""
        query = (
            select(OperatorRow)
            .join(SessionRow, SessionRow.operator == OperatorRow.name)
            .where(
                SessionRow.session_sha256 == _sha256(cookie),
                SessionRow.expires_at > self._now(),
                OperatorRow.removed_at.is_(None),
            )
        )
        with self._read() as session:
            row = session.scalar(query)
            return None if row is None else _operator(row)

    def end_session(self, cookie: str) -> None:
        """Log out."""
        with self._write() as session:
            session.execute(delete(SessionRow).where(SessionRow.session_sha256 == _sha256(cookie)))


def _sha256(cookie: str) -> str:
    # No slow hash: 32 random bytes, which nobody can guess through.
    return hashlib.sha256(cookie.encode()).hexdigest()


def _active(session: Session, name: str) -> OperatorRow:
    row = session.get(OperatorRow, name)
    if row is None or row.removed_at is not None:
        raise NotFoundError(f"There is no operator {name!r}. `lamella operators list` shows who there is.")
    return row


def _operator(row: OperatorRow) -> OperatorRecord:
    return OperatorRecord(
        name=row.name,
        role=Role(row.role),
        has_password=row.password_hash is not None,
        created_at=row.created_at,
        removed_at=row.removed_at,
    )


def _token(row: OperatorTokenRow) -> OperatorTokenRecord:
    return OperatorTokenRecord(
        token_id=row.token_id,
        operator=row.operator,
        label=row.label,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
