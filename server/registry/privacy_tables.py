"""Tables about privacy beside the events themselves: their chain, budgets of populations, and keys of noise."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLAlchemy reads annotations
from typing import Any

from sqlalchemy import ForeignKey, String, UniqueConstraint, false
from sqlalchemy.orm import Mapped, mapped_column

from server.registry.tables import DIGEST, IDENTIFIER, MODEL_NAME, Base


class PrivacyChainRow(Base):
    """Where an event stands in its model's chain, and the chain's head after it (`privacy.chain`)."""

    __tablename__ = "privacy_chain"
    __table_args__ = (UniqueConstraint("model", "sequence"),)

    position: Mapped[int] = mapped_column(ForeignKey("privacy_events.position"), primary_key=True, autoincrement=False)
    model: Mapped[str] = mapped_column(MODEL_NAME)
    sequence: Mapped[int]
    privacy_unit: Mapped[str] = mapped_column(String(16))
    head: Mapped[str] = mapped_column(DIGEST)


class PrivacyBudgetRow(Base):
    """What the users of a model may ever be charged.

    ``is_apart``: the operator vouches that none of them is a user of another model on the same base.
    """

    __tablename__ = "privacy_budgets"

    population: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"), primary_key=True)
    target_epsilon: Mapped[float]
    target_delta: Mapped[float]
    is_apart: Mapped[bool] = mapped_column(server_default=false())
    set_at: Mapped[datetime]


class ExampleBudgetRow(Base):
    """What each example of a model's devices may be charged in all."""

    __tablename__ = "example_budgets"

    model: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"), primary_key=True)
    target_epsilon: Mapped[float]
    target_delta: Mapped[float]
    set_at: Mapped[datetime]


class BaseOriginRow(Base):
    """A base that was made from another one, by merging an adapter into it or by other weights: its bill goes on."""

    __tablename__ = "base_origins"

    base_hash: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    made_from: Mapped[str] = mapped_column(DIGEST, primary_key=True)


class NoiseKeyRow(Base):
    """The key that a run's banded noise comes from: with it the noise could be subtracted. Gone when the run ends."""

    __tablename__ = "noise_keys"

    run_id: Mapped[str] = mapped_column(IDENTIFIER, ForeignKey("runs.run_id"), primary_key=True)
    key: Mapped[str] = mapped_column(DIGEST)


class AuditFindingRow(Base):
    """What an audit found about a run, the last time it was asked; ``detail`` is what a report draws."""

    __tablename__ = "audit_findings"

    run_id: Mapped[str] = mapped_column(IDENTIFIER, ForeignKey("runs.run_id"), primary_key=True)
    part: Mapped[str] = mapped_column(String(64), primary_key=True)
    asked_for: Mapped[str] = mapped_column(String(64))
    finding: Mapped[dict[str, Any]]
    detail: Mapped[dict[str, Any] | None]
    recorded_at: Mapped[datetime]


class AuditHistoryRow(Base):
    """What an audit had found about a run before it was made again; append-only."""

    __tablename__ = "audit_history"

    position: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(IDENTIFIER, ForeignKey("runs.run_id"), index=True)
    part: Mapped[str] = mapped_column(String(64))
    finding: Mapped[dict[str, Any]]
    recorded_at: Mapped[datetime]
