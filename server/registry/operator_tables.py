"""Tables of operators: accounts, API tokens, sessions of the console, and the audit log."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLAlchemy reads annotations

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from server.registry.tables import DIGEST, Base

OPERATOR_NAME = String(64)


class OperatorRow(Base):
    """A person or a program that may call the API; a name is never given to another one."""

    __tablename__ = "operators"

    name: Mapped[str] = mapped_column(OPERATOR_NAME, primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str | None]
    created_at: Mapped[datetime]
    removed_at: Mapped[datetime | None]


class OperatorTokenRow(Base):
    """An API token; of its secret only an argon2 hash."""

    __tablename__ = "operator_tokens"

    token_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    operator: Mapped[str] = mapped_column(OPERATOR_NAME, ForeignKey("operators.name"), index=True)
    label: Mapped[str] = mapped_column(String(64))
    secret_hash: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class SessionRow(Base):
    """A login to the console; of its cookie only the hash."""

    __tablename__ = "sessions"

    session_sha256: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    operator: Mapped[str] = mapped_column(OPERATOR_NAME, ForeignKey("operators.name"), index=True)
    started_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class AuditRow(Base):
    """Who did what: append-only, each entry holds the digest of the one before it."""

    __tablename__ = "audit_log"

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(String(128))
    via: Mapped[str] = mapped_column(String(16))
    action: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str]
    outcome: Mapped[str]
    previous: Mapped[str] = mapped_column(DIGEST)
    digest: Mapped[str] = mapped_column(DIGEST)
