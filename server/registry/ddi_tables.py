"""Tables of devices that speak hawkBit's protocol: who they are, what they were told to do, extra digests."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLAlchemy reads the annotations
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.orm import Mapped, mapped_column

from server.registry.tables import DIGEST, MODEL_NAME, Base


class GatewayTokenRow(Base):
    """A token with which unknown controllers of a model enrol themselves; of it only the hash."""

    __tablename__ = "ddi_gateway_tokens"
    __table_args__ = (Unique("token_sha256"),)

    token_id: Mapped[int] = mapped_column(primary_key=True)
    token_sha256: Mapped[str] = mapped_column(DIGEST)
    model: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"), index=True)
    device_limit: Mapped[int]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class ControllerRow(Base):
    """A controller and the device it is; no ``token_sha256``: it only has its gateway's token."""

    __tablename__ = "ddi_controllers"
    __table_args__ = (Unique("device_id"),)

    model: Mapped[str] = mapped_column(MODEL_NAME, ForeignKey("models.name"), primary_key=True)
    controller_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    device_id: Mapped[str] = mapped_column(String(32), ForeignKey("devices.device_id"))
    token_sha256: Mapped[str | None] = mapped_column(DIGEST)
    gateway_token_id: Mapped[int | None] = mapped_column(ForeignKey("ddi_gateway_tokens.token_id"), index=True)
    attributes: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class ActionRow(Base):
    """An offer under the number that hawkBit's clients know it by."""

    __tablename__ = "ddi_actions"
    __table_args__ = (Unique("offer_id"), Index("ix_ddi_actions_device_id_state", "device_id", "state"))

    action_id: Mapped[int] = mapped_column(primary_key=True)
    offer_id: Mapped[str] = mapped_column(String(32), ForeignKey("offers.offer_id"))
    device_id: Mapped[str] = mapped_column(String(32), ForeignKey("devices.device_id"))
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]


class DigestRow(Base):
    """What hawkBit's clients want to know about a file, computed once."""

    __tablename__ = "ddi_digests"

    sha256: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    length: Mapped[int] = mapped_column(BigInteger)
    sha1: Mapped[str] = mapped_column(String(40))
    md5: Mapped[str] = mapped_column(String(32))


class ImageRow(Base):
    """A .swu made already: ``recipe`` is the hash of all that it was made from."""

    __tablename__ = "ddi_images"

    recipe: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    sha256: Mapped[str] = mapped_column(DIGEST)
