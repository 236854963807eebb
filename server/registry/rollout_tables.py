"""Tables of rollouts, channels and what operators decided about single devices."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLAlchemy reads the annotations
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, ForeignKeyConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from server.registry.tables import MODEL_NAME, Base

LABEL = String(64)


class RolloutRow(Base):
    """A rollout; ``plan`` never changes, and each change of the rest raises ``revision`` by one."""

    __tablename__ = "rollouts"
    __table_args__ = (
        ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),
        Index("ix_rollouts_model_version", "model", "version"),
    )

    rollout_id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(MODEL_NAME)
    version: Mapped[int]
    plan: Mapped[dict[str, Any]]
    channel: Mapped[str] = mapped_column(LABEL)
    state: Mapped[str] = mapped_column(String(16))
    phase: Mapped[int]
    phase_started_at: Mapped[datetime | None]
    phase_devices: Mapped[int]
    reason: Mapped[str]
    revision: Mapped[int]
    created_at: Mapped[datetime]
    evaluated_at: Mapped[datetime | None]


class RolloutChangeRow(Base):
    """What a rollout was after each change; append-only."""

    __tablename__ = "rollout_changes"

    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.rollout_id"), primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    phase: Mapped[int]
    reason: Mapped[str]
    changed_at: Mapped[datetime]


class RolloutDeviceRow(Base):
    """A device that a rollout offered its version to, the phase it came with, and what it reported last."""

    __tablename__ = "rollout_devices"

    rollout_id: Mapped[int] = mapped_column(ForeignKey("rollouts.rollout_id"), primary_key=True, autoincrement=False)
    device_id: Mapped[str] = mapped_column(String(32), ForeignKey("devices.device_id"), primary_key=True)
    phase: Mapped[int]
    outcome: Mapped[str] = mapped_column(String(16))
    loss_increase: Mapped[float | None]
    tokens_per_second: Mapped[float | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)


class ChannelMoveRow(Base):
    """What a channel pointed at, one row a move; append-only, and the last one counts. No version: at nothing."""

    __tablename__ = "channel_moves"
    __table_args__ = (ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),)

    model: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"), primary_key=True)
    channel: Mapped[str] = mapped_column(LABEL, primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int | None]
    rollout_id: Mapped[int | None] = mapped_column(ForeignKey("rollouts.rollout_id"))
    reason: Mapped[str]
    moved_at: Mapped[datetime]


class DevicePolicyRow(Base):
    """What operators decided about one device; a device without a row has the defaults."""

    __tablename__ = "device_policies"

    device_id: Mapped[str] = mapped_column(String(32), ForeignKey("devices.device_id"), primary_key=True)
    channel: Mapped[str] = mapped_column(LABEL)
    group_name: Mapped[str | None] = mapped_column(LABEL)
    tags: Mapped[list[str]] = mapped_column(JSON)
    is_opted_out: Mapped[bool]
    forced_version: Mapped[int | None]
