"""Devices that speak hawkBit's protocol: their tokens, and offers under the numbers that they know them by."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from typing import TYPE_CHECKING, cast

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from delta_updates.offer import Outcome
from server.errors import ConflictError, CredentialRefusedError, ForbiddenError, NotFoundError
from server.registry.asking import device_record
from server.registry.ddi_records import ActionRecord, ControllerRecord, FailedAttempt, FileDigests, GatewayTokenRecord
from server.registry.ddi_tables import ActionRow, ControllerRow, DigestRow, GatewayTokenRow, ImageRow
from server.registry.offers import offer_of
from server.registry.tables import DeviceRow, ModelRow, OfferRow, ReportRow
from server.registry.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.orm import Session

    from server.registry.ddi_records import ActionState

_SECRET_BYTES = 32
_UNFINISHED = ("open", "canceling", "refused")
_MOST_ATTEMPTS = 20
_UNKNOWN = "This token is not one of this controller. Ask the operator: `lamella ddi target-token` makes one."


class DdiTransactions(Transactions):
    """The registry's transactions on controllers and actions."""

    def issue_target_token(self, model: str, controller_id: str) -> tuple[str, ControllerRecord]:
        """Make a controller's own token, enrolling it when it is new; a token that it had before is no good any more.

        Raises:
            NotFoundError: There is no such model.
        """
        token = secrets.token_hex(_SECRET_BYTES)
        with self._write() as session:
            _require_model(session, model)
            row = session.get(ControllerRow, (model, controller_id))
            if row is None:
                row = _enrol(session, model, controller_id, now=self._now())
            row.token_sha256 = _sha256(token)
            session.flush()
            return token, _controller(session, row)

    def issue_gateway_token(self, model: str, *, device_limit: int) -> tuple[str, GatewayTokenRecord]:
        """Make a token with which at most ``device_limit`` unknown controllers of a model enrol themselves.

        Raises:
            NotFoundError: There is no such model.
        """
        token = secrets.token_hex(_SECRET_BYTES)
        with self._write() as session:
            _require_model(session, model)
            row = GatewayTokenRow(
                token_sha256=_sha256(token), model=model, device_limit=device_limit, created_at=self._now()
            )
            session.add(row)
            session.flush()
            return token, _gateway(row, devices=0)

    def gateway_tokens(self) -> tuple[GatewayTokenRecord, ...]:
        """All gateway tokens in the order of their making, with how many devices came by each."""
        query = (
            select(GatewayTokenRow, func.count(ControllerRow.device_id))
            .outerjoin(ControllerRow, ControllerRow.gateway_token_id == GatewayTokenRow.token_id)
            .group_by(*GatewayTokenRow.__table__.columns)
            .order_by(GatewayTokenRow.token_id)
        )
        with self._read() as session:
            return tuple(_gateway(row, devices=devices) for row, devices in session.execute(query))

    def revoke_gateway_token(self, token_id: int) -> None:
        """Refuse a gateway token from now on: nobody enrols with it, and who enrolled with it needs another.

        Raises:
            NotFoundError: There is no such token.
        """
        with self._write() as session:
            row = session.get(GatewayTokenRow, token_id)
            if row is None:
                raise NotFoundError(f"There is no gateway token {token_id}. `lamella ddi gateway-tokens` lists them.")
            row.revoked_at = row.revoked_at or self._now()

    def target_by_token(self, model: str, controller_id: str, token: str) -> ControllerRecord:
        """The controller that a target token was given to.

        Raises:
            CredentialRefusedError: It was not.
            ForbiddenError: The device was revoked.
        """
        with self._read() as session:
            row = session.get(ControllerRow, (model, controller_id))
            expected = (row.token_sha256 if row is not None else None) or "0" * 64
            if not hmac.compare_digest(_sha256(token), expected) or row is None:
                raise CredentialRefusedError(_UNKNOWN)
            return _controller(session, row)

    def target_by_gateway(self, model: str, controller_id: str, token: str) -> ControllerRecord:
        """The controller of that name, enrolled now when it is new.

        Raises:
            CredentialRefusedError: The token is none of this model, or was revoked.
            ForbiddenError: The device was revoked, or the token has enrolled as many as it may.
        """
        with self._read() as session:
            gateway = _live_gateway(session, model, token)
            row = session.get(ControllerRow, (model, controller_id))
            if row is not None:
                return _controller(session, row)
        with self._write() as session:
            # Two first polls at once, and two gateways: the token's row is the lock that makes the limit hold.
            session.get_one(GatewayTokenRow, gateway, with_for_update=True)
            row = session.get(ControllerRow, (model, controller_id))
            if row is None:
                _require_room(session, gateway)
                row = _enrol(session, model, controller_id, now=self._now(), gateway_token_id=gateway)
            return _controller(session, row)

    def controllers(self) -> tuple[ControllerRecord, ...]:
        """All controllers by model and name, but for revoked ones."""
        query = (
            select(ControllerRow)
            .join(DeviceRow, DeviceRow.device_id == ControllerRow.device_id)
            .where(DeviceRow.revoked_at.is_(None))
            .order_by(ControllerRow.model, ControllerRow.controller_id)
        )
        with self._read() as session:
            return tuple(_controller(session, row) for row in session.scalars(query))

    def set_attributes(self, device_id: str, attributes: Mapping[str, str]) -> None:
        """Keep what a controller says of itself, in place of what it said before."""
        with self._write() as session:
            row = session.scalars(select(ControllerRow).where(ControllerRow.device_id == device_id)).one()
            row.attributes = dict(attributes)

    def unfinished_action(self, device_id: str) -> ActionRecord | None:
        """What a device was told to do and did not answer for yet; the oldest."""
        with self._read() as session:
            row = _unfinished(session, device_id)
            return None if row is None else _action(session, row)

    def open_action(self, device_id: str, offer_id: str) -> ActionRecord:
        """Put a number on an offer; a device has one unfinished action, which is the answer when there is one."""
        with self._write() as session:
            # The row of the device is the lock: two polls at once get the same action.
            session.get_one(DeviceRow, device_id, with_for_update=True)
            row = _unfinished(session, device_id)
            if row is None:
                row = ActionRow(offer_id=offer_id, device_id=device_id, state="open", created_at=self._now())
                session.add(row)
                session.flush()
            return _action(session, row)

    def action(self, device_id: str, action_id: int) -> ActionRecord:
        """An action of this device.

        Raises:
            NotFoundError: It never had such an action.
        """
        with self._read() as session:
            return _action(session, _own(session, device_id, action_id))

    def move_action(self, device_id: str, action_id: int, state: ActionState) -> None:
        """Note how far an action came; what is over stays over, and a canceled offer is made again when it is due.

        Raises:
            NotFoundError: The device never had such an action.
        """
        with self._write() as session:
            row = _own(session, device_id, action_id)
            if row.state == "closed" or (row.state == "canceled" and state != "closed"):
                return
            row.state = state
            if state in {"closed", "canceled"}:
                session.get_one(OfferRow, row.offer_id).is_open = False

    def failed_attempts(self, device_id: str, *, model: str, version: int) -> tuple[FailedAttempt, ...]:
        """The last times that a device could not install a version, newest first."""
        query = (
            select(OfferRow.package_path, ReportRow.received_at)
            .join(ReportRow, ReportRow.offer_id == OfferRow.offer_id)
            .where(
                OfferRow.device_id == device_id,
                OfferRow.model == model,
                OfferRow.version == version,
                ReportRow.outcome == Outcome.FAILED.value,
            )
            .order_by(ReportRow.received_at.desc())
            .limit(_MOST_ATTEMPTS)
        )
        with self._read() as session:
            return tuple(FailedAttempt(package_path=path, at=at) for path, at in session.execute(query))

    def digests(self, sha256: str) -> FileDigests | None:
        """What was computed about a stored file."""
        with self._read() as session:
            row = session.get(DigestRow, sha256)
            if row is None:
                return None
            return FileDigests(sha256=row.sha256, length=row.length, sha1=row.sha1, md5=row.md5)

    def add_digests(self, digests: FileDigests) -> None:
        """Keep what was computed about a stored file; doing it twice changes nothing."""
        with self._write() as session:
            session.merge(DigestRow(**vars(digests)))

    def image(self, recipe: str) -> str | None:
        """The digest of the image that was made by a recipe."""
        with self._read() as session:
            row = session.get(ImageRow, recipe)
            return None if row is None else row.sha256

    def add_image(self, recipe: str, sha256: str) -> None:
        """Keep which image a recipe makes; its bytes are in the artifact store."""
        with self._write() as session:
            session.merge(ImageRow(recipe=recipe, sha256=sha256))


def _sha256(secret: str) -> str:
    # No slow hash: the tokens are 32 random bytes, which nobody can guess through.
    return hashlib.sha256(secret.encode()).hexdigest()


def _require_model(session: Session, model: str) -> None:
    if session.get(ModelRow, model) is None:
        raise NotFoundError(f"There is no model {model!r}. Import a base first: `lamella base import`.")


def _live_gateway(session: Session, model: str, token: str) -> int:
    live = session.scalars(
        select(GatewayTokenRow).where(GatewayTokenRow.model == model, GatewayTokenRow.revoked_at.is_(None))
    )
    given = _sha256(token)
    matching = [row.token_id for row in live if hmac.compare_digest(given, row.token_sha256)]
    if not matching:
        raise CredentialRefusedError(
            "This gateway token is unknown here or was revoked. `lamella ddi gateway-token` makes one."
        )
    return matching[0]


def _require_room(session: Session, token_id: int) -> None:
    token = session.get_one(GatewayTokenRow, token_id)
    devices = session.scalar(
        select(func.count()).select_from(ControllerRow).where(ControllerRow.gateway_token_id == token_id)
    )
    if devices is not None and devices >= token.device_limit:
        raise ForbiddenError(
            f"This gateway token has enrolled {devices} devices, which is all that it may. "
            "`lamella ddi gateway-token` makes another."
        )


def _enrol(
    session: Session, model: str, controller_id: str, *, now: datetime, gateway_token_id: int | None = None
) -> ControllerRow:
    device_id = uuid.uuid4().hex
    # A credential of the other protocol that nobody was given.
    unknown = _sha256(secrets.token_urlsafe(_SECRET_BYTES))
    session.add(
        DeviceRow(device_id=device_id, name=controller_id, model=model, credential_sha256=unknown, enrolled_at=now)
    )
    session.flush()
    row = ControllerRow(
        model=model, controller_id=controller_id, device_id=device_id, gateway_token_id=gateway_token_id
    )
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise ConflictError(f"Controller {controller_id!r} is being enrolled just now. Try again.") from error
    return row


def _unfinished(session: Session, device_id: str) -> ActionRow | None:
    return session.scalar(
        select(ActionRow)
        .where(ActionRow.device_id == device_id, ActionRow.state.in_(_UNFINISHED))
        .order_by(ActionRow.action_id)
        .limit(1)
    )


def _own(session: Session, device_id: str, action_id: int) -> ActionRow:
    row = session.get(ActionRow, action_id)
    # Another device's action is answered like one that never was.
    if row is None or row.device_id != device_id:
        raise NotFoundError(f"This controller has no action {action_id}.")
    return row


def _controller(session: Session, row: ControllerRow) -> ControllerRecord:
    device = session.get_one(DeviceRow, row.device_id)
    if device.revoked_at is not None:
        raise ForbiddenError("This device was revoked by the operator.")
    return ControllerRecord(controller_id=row.controller_id, device=device_record(device), attributes=row.attributes)


def _gateway(row: GatewayTokenRow, *, devices: int) -> GatewayTokenRecord:
    return GatewayTokenRecord(
        token_id=row.token_id,
        model=row.model,
        device_limit=row.device_limit,
        devices=devices,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )


def _action(session: Session, row: ActionRow) -> ActionRecord:
    offer = session.get_one(OfferRow, row.offer_id)
    return ActionRecord(action_id=row.action_id, state=cast("ActionState", row.state), offer=offer_of(offer))
