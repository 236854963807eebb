"""A device at the door: who it is, what operators decided about it, and the change token, in one read."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, select, true

from server.errors import CredentialRefusedError, ForbiddenError, NotFoundError
from server.registry.changes import ChangeRow
from server.registry.records import AskingDevice, DevicePolicyRecord, DeviceRecord
from server.registry.rollout_tables import DevicePolicyRow
from server.registry.tables import DeviceRow
from server.registry.transactions import Transactions
from server.rollouts import STABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Row

# The hash of nothing that anybody could show.
NO_CREDENTIAL: Final = "0" * 64

_DEVICES, _POLICIES, _CHANGES = DeviceRow.__table__, DevicePolicyRow.__table__, ChangeRow.__table__
# Of plain columns: every check runs it, and rows of the ORM cost more than the query.
_ASKING: Final = (
    select(
        *_DEVICES.c,
        *(column for column in _POLICIES.c if column.name != "device_id"),
        _CHANGES.c.token,
    )
    .select_from(_DEVICES.outerjoin(_POLICIES, _POLICIES.c.device_id == _DEVICES.c.device_id).join(_CHANGES, true()))
    .where(_DEVICES.c.device_id == bindparam("asking"))
)


class AskingTransactions(Transactions):
    """The registry's transactions on devices that ask something."""

    def asking(self, device_id: str) -> AskingDevice:
        """A device, as if it asked now.

        Raises:
            NotFoundError: There is no such device.
        """
        row = self._asking(device_id)
        if row is None:
            raise no_device(device_id)
        return _asking_device(row)

    def authenticate(self, credential: str) -> AskingDevice:
        """The device that a credential was given to.

        Raises:
            CredentialRefusedError: Nobody was given this credential.
            ForbiddenError: The device was revoked.
        """
        device_id, _, secret = credential.partition(".")
        row = self._asking(device_id)
        expected = row.credential_sha256 if row is not None else NO_CREDENTIAL
        if not hmac.compare_digest(hash_of_secret(secret), expected) or row is None:
            raise CredentialRefusedError("This device credential is unknown here. Enrol the device again.")
        return _allowed(row)

    def device_with_key(self, device_id: str, require_by: Callable[[str | None], None]) -> AskingDevice:
        """The device that a signed request says it is of.

        Args:
            device_id: What the request says.
            require_by: Raises unless the request was signed with this public key; None when there is no such device.

        Raises:
            ForbiddenError: The device was revoked.
            NotFoundError: There is none, and `require_by` let it pass.
        """
        row = self._asking(device_id)
        require_by(row.public_key if row is not None else None)
        if row is None:
            raise no_device(device_id)
        return _allowed(row)

    def _asking(self, device_id: str) -> Row[Any] | None:
        return next(iter(self._glance(_ASKING, asking=device_id)), None)


def no_device(device_id: str) -> NotFoundError:
    """There is none with this id."""
    return NotFoundError(f"There is no device {device_id!r}. `lamella devices list` shows what there is.")


def hash_of_secret(secret: str) -> str:
    """What is kept of a secret. No slow hash: the secrets are 32 random bytes, which nobody can guess through."""
    return hashlib.sha256(secret.encode()).hexdigest()


def device_record(row: DeviceRow | Row[Any]) -> DeviceRecord:
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


def policy_record(device_id: str, row: DevicePolicyRow | Row[Any] | None) -> DevicePolicyRecord:
    """What was decided about a device as a value; no row, or one without a channel: the defaults."""
    if row is None or row.channel is None:
        return DevicePolicyRecord(
            device_id=device_id, channel=STABLE, group=None, tags=(), is_opted_out=False, forced_version=None
        )
    return DevicePolicyRecord(
        device_id=device_id,
        channel=row.channel,
        group=row.group_name,
        tags=tuple(row.tags),
        is_opted_out=row.is_opted_out,
        forced_version=row.forced_version,
    )


def _allowed(row: Row[Any]) -> AskingDevice:
    if row.revoked_at is not None:
        raise ForbiddenError("This device was revoked by the operator. Enrol it again to use the service.")
    return _asking_device(row)


def _asking_device(row: Row[Any]) -> AskingDevice:
    return AskingDevice(device=device_record(row), policy=policy_record(row.device_id, row), token=row.token)
