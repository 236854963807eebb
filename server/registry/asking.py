"""Devices at the door: who they are, what operators decided about them, and the change token, in one read."""

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
    from collections.abc import Callable, Collection

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
    .where(_DEVICES.c.device_id.in_(bindparam("asking", expanding=True)))
)
# What a database may be asked about in one statement.
_MOST_AT_ONCE: Final = 1000


class AskingTransactions(Transactions):
    """The registry's transactions on devices that ask something."""

    def asking(self, device_id: str) -> AskingDevice:
        """A device, as if it asked now.

        Raises:
            NotFoundError: There is no such device.
        """
        row = self._row_asking(device_id)
        if row is None:
            raise no_device(device_id)
        return _asking_device(row)

    def authenticate(self, credential: str) -> AskingDevice:
        """The device that a credential was given to; raises as `by_credential` does."""
        device_id, _, secret = credential.partition(".")
        return by_credential(self._row_asking(device_id), secret)

    def rows_asking(self, device_ids: Collection[str]) -> dict[str, Row[Any]]:
        """What is known of devices that ask at the same time, by their ids; who is not in it is not known.

        Whether it is they who ask, `by_credential` and `by_key` say.
        """
        everyone = sorted(set(device_ids))
        starts = range(0, len(everyone), _MOST_AT_ONCE)
        found = (self._glance(_ASKING, asking=everyone[start : start + _MOST_AT_ONCE]) for start in starts)
        return {row.device_id: row for rows in found for row in rows}

    def _row_asking(self, device_id: str) -> Row[Any] | None:
        return self.rows_asking([device_id]).get(device_id)


def by_credential(row: Row[Any] | None, secret: str) -> AskingDevice:
    """The device whose credential has this secret.

    Args:
        row: Of the device that the credential names; None: there is none.
        secret: What came after that name.

    Raises:
        CredentialRefusedError: Nobody was given this credential.
        ForbiddenError: The device was revoked.
    """
    expected = row.credential_sha256 if row is not None else NO_CREDENTIAL
    if not hmac.compare_digest(hash_of_secret(secret), expected) or row is None:
        raise CredentialRefusedError("This device credential is unknown here. Enrol the device again.")
    return _allowed(row)


def by_key(row: Row[Any] | None, require_by: Callable[[str | None], None]) -> AskingDevice:
    """The device that signed a request.

    Args:
        row: Of the device that the request says it is of; None: there is none.
        require_by: Raises unless the request was signed with this public key; also when that is None.

    Raises:
        ForbiddenError: The device was revoked.
    """
    require_by(row.public_key if row is not None else None)
    if row is None:
        raise ValueError("require_by let a device pass that is not known")
    return _allowed(row)


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
