"""The table of signed privacy statements, one a version."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLAlchemy reads annotations

from sqlalchemy import ForeignKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from server.registry.tables import DIGEST, MODEL_NAME, Base


class StatementRow(Base):
    """A version's signed statement, and the report and ledger that it names; all three are artifacts."""

    __tablename__ = "privacy_statements"
    __table_args__ = (ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),)

    model: Mapped[str] = mapped_column(MODEL_NAME, primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sha256: Mapped[str] = mapped_column(DIGEST)
    length: Mapped[int]
    report_sha256: Mapped[str] = mapped_column(DIGEST)
    ledger_sha256: Mapped[str] = mapped_column(DIGEST)
    keyid: Mapped[str] = mapped_column(DIGEST)
    public_key: Mapped[str] = mapped_column(DIGEST)
    signed_at: Mapped[datetime]
