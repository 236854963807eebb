"""Tables of the registry. Changing one means a new file in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MODEL_NAME = String(64)
DIGEST = String(64)
IDENTIFIER = String(128)


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time: only with a time zone on the way in, always UTC on the way out (SQLite keeps no zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Python → database."""
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Database → Python."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names every constraint, so that a later migration can change it on SQLite and PostgreSQL alike."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        str: Text,
    }


class ModelRow(Base):
    """A model and the last version number given out; the row is the lock that makes numbers unique."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(MODEL_NAME, primary_key=True)
    last_version: Mapped[int] = mapped_column(default=0)


class VersionRow(Base):
    """A version; ``manifest`` is its canonical JSON, ``master_sha256`` the artifact that it was rounded from."""

    __tablename__ = "versions"

    model: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(default="")
    tree_hash: Mapped[str] = mapped_column(DIGEST)
    base_hash: Mapped[str] = mapped_column(DIGEST)
    manifest: Mapped[str]
    manifest_sha256: Mapped[str] = mapped_column(DIGEST)
    manifest_length: Mapped[int]
    run_id: Mapped[str | None] = mapped_column(IDENTIFIER, ForeignKey("runs.run_id"), index=True)
    master_sha256: Mapped[str | None] = mapped_column(DIGEST)
    candidate_loss: Mapped[float | None]
    parent_loss: Mapped[float | None]
    gate_margin: Mapped[float | None]
    gate_worst_group_margin: Mapped[float | None]
    is_gate_passed: Mapped[bool | None]
    gate_groups: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime]
    released_at: Mapped[datetime | None]


class VersionFileRow(Base):
    """A file of a version's tree; its bytes are in the artifact store under ``sha256``."""

    __tablename__ = "version_files"
    __table_args__ = (ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),)

    model: Mapped[str] = mapped_column(MODEL_NAME, primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    path: Mapped[str] = mapped_column(String(255), primary_key=True)
    length: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(DIGEST, index=True)


class PackageRow(Base):
    """A package of a version, by the path it is signed under; once collected, devices are offered others."""

    __tablename__ = "packages"
    __table_args__ = (
        ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),
        Unique("model", "version", "source_version"),
    )

    path: Mapped[str] = mapped_column(String(255), primary_key=True)
    model: Mapped[str] = mapped_column(MODEL_NAME)
    version: Mapped[int]
    source_version: Mapped[int | None]
    length: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(DIGEST)
    format: Mapped[int] = mapped_column(server_default="4")
    facts: Mapped[dict[str, Any]]
    collected_at: Mapped[datetime | None]


class RunRow(Base):
    """A federated run."""

    __tablename__ = "runs"

    run_id: Mapped[str] = mapped_column(IDENTIFIER, primary_key=True)
    model: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"), index=True)
    recipe: Mapped[dict[str, Any]]
    base_version: Mapped[int]
    base_hash: Mapped[str] = mapped_column(DIGEST)
    parent_version: Mapped[int | None]
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(default="")
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class RoundRow(Base):
    """A finished round of a run."""

    __tablename__ = "rounds"

    run_id: Mapped[str] = mapped_column(IDENTIFIER, ForeignKey("runs.run_id"), primary_key=True)
    server_round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(String(16))
    replies: Mapped[int]
    failures: Mapped[dict[str, Any]]
    held_out_loss: Mapped[float | None]
    artifacts: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any]]
    recorded_at: Mapped[datetime]


class PrivacyEventRow(Base):
    """A privacy event, append-only; ``event`` is its JSON, so that ε is recomputed from exactly what was recorded."""

    __tablename__ = "privacy_events"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "server_round"], ["rounds.run_id", "rounds.server_round"]),
        Unique("event_id"),
    )

    position: Mapped[int] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(IDENTIFIER)
    run_id: Mapped[str] = mapped_column(IDENTIFIER, index=True)
    server_round: Mapped[int]
    device_id: Mapped[str] = mapped_column(IDENTIFIER, index=True)
    event: Mapped[str]


class DeviceRow(Base):
    """An enrolled device; of its credential only the hash, and none once its key is known (Ed25519, as text)."""

    __tablename__ = "devices"

    device_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"), index=True)
    credential_sha256: Mapped[str] = mapped_column(DIGEST)
    enrolled_at: Mapped[datetime]
    last_seen_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    installed_version: Mapped[int | None]
    installed_hash: Mapped[str | None] = mapped_column(DIGEST)
    public_key: Mapped[str | None] = mapped_column(String(43), index=True, unique=True)
    free_bytes: Mapped[int | None] = mapped_column(BigInteger)


class EnrolmentTokenRow(Base):
    """An enrolment token for `max_uses` devices; only its hash. `used_at` and `device_id` are of its last use."""

    __tablename__ = "enrolment_tokens"
    __table_args__ = (Unique("token_sha256"),)

    token_id: Mapped[int] = mapped_column(primary_key=True)
    token_sha256: Mapped[str] = mapped_column(DIGEST)
    model: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    device_id: Mapped[str | None] = mapped_column(String(32), ForeignKey("devices.device_id"))
    max_uses: Mapped[int] = mapped_column(server_default="1")
    uses: Mapped[int] = mapped_column(server_default="0")
    revoked_at: Mapped[datetime | None]


class OfferRow(Base):
    """An offer made to one device; ``is_open`` until it reports how the offer ended. ``rollout_id``: who made it."""

    __tablename__ = "offers"

    offer_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(32), ForeignKey("devices.device_id"), index=True)
    model: Mapped[str] = mapped_column(MODEL_NAME)
    version: Mapped[int]
    package_path: Mapped[str] = mapped_column(String(255), ForeignKey("packages.path"))
    is_open: Mapped[bool]
    offered_at: Mapped[datetime]
    rollout_id: Mapped[int | None] = mapped_column(index=True)


class ReportRow(Base):
    """An outcome of an offer; one row an outcome, so that a repeated report changes nothing."""

    __tablename__ = "reports"

    offer_id: Mapped[str] = mapped_column(String(32), ForeignKey("offers.offer_id"), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(16), primary_key=True)
    reason: Mapped[str] = mapped_column(default="")
    bytes_downloaded: Mapped[int] = mapped_column(BigInteger)
    apply_seconds: Mapped[float]
    received_at: Mapped[datetime]
