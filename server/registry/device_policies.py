"""What operators decided about single devices, and the facts by which a device is given a version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import select

from server.errors import ConflictError, InvalidRecordError
from server.registry.asking import no_device, policy_record
from server.registry.rollout_tables import DevicePolicyRow
from server.registry.tables import DeviceRow, VersionRow
from server.registry.transactions import Transactions
from server.rollouts import STABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from server.registry.records import DevicePolicyRecord


_COLUMNS: Final = {
    "channel": "channel",
    "group": "group_name",
    "is_opted_out": "is_opted_out",
    "forced_version": "forced_version",
}
_FIELDS: Final = {*_COLUMNS, "tags", "add_tags", "remove_tags"}


class PolicyTransactions(Transactions):
    """The registry's transactions on what operators decided about devices."""

    def device_policy(self, device_id: str) -> DevicePolicyRecord:
        """What operators decided about a device.

        Raises:
            NotFoundError: There is no such device.
        """
        with self._read() as session:
            _device(session, device_id)
            return policy_record(device_id, session.get(DevicePolicyRow, device_id))

    def device_policies(self) -> Mapping[str, DevicePolicyRecord]:
        """What operators decided, by device id; devices with the defaults are not in it."""
        with self._read() as session:
            rows = session.scalars(select(DevicePolicyRow))
            return {row.device_id: policy_record(row.device_id, row) for row in rows}

    def set_device_policy(self, device_id: str, **changes: object) -> DevicePolicyRecord:
        """Change what is named: ``channel``, ``group``, ``is_opted_out``, ``forced_version``, and tags.

        ``tags`` replaces all of them, ``add_tags`` and ``remove_tags`` leave the others alone.

        Raises:
            NotFoundError: There is no such device.
            ConflictError: The forced version is not released, or lower than what the device runs.
        """
        if unknown := set(changes) - _FIELDS:
            raise InvalidRecordError(f"A device has no {', '.join(sorted(unknown))}.")
        with self._write() as session:
            device = _device(session, device_id)
            if (forced := changes.get("forced_version")) is not None:
                _require_forceable(session, device, cast("int", forced))
            row = session.get(DevicePolicyRow, device_id)
            if row is None:
                row = DevicePolicyRow(device_id=device_id, channel=STABLE, group_name=None, tags=[], is_opted_out=False)
                session.add(row)
            for name in _COLUMNS.keys() & changes.keys():
                setattr(row, _COLUMNS[name], cast("Any", changes[name]))
            row.tags = _tags(row.tags, cast("Mapping[str, Iterable[str]]", changes))
            session.flush()
            return policy_record(device_id, row)


def _tags(known: Iterable[str], changes: Mapping[str, Iterable[str]]) -> list[str]:
    kept = set(changes.get("tags", known)) - set(changes.get("remove_tags", ()))
    return sorted(kept | set(changes.get("add_tags", ())))


def _device(session: Session, device_id: str) -> DeviceRow:
    row = session.get(DeviceRow, device_id)
    if row is None:
        raise no_device(device_id)
    return row


def _require_forceable(session: Session, device: DeviceRow, number: int) -> None:
    version = session.get(VersionRow, (device.model, number))
    if version is None or version.state != "released":
        state = "does not exist" if version is None else f"is {version.state}"
        raise ConflictError(f"v{number} of {device.model!r} {state}: only a released version can be forced.")
    if device.installed_version is not None and device.installed_version > number:
        raise ConflictError(
            f"{device.name} runs v{device.installed_version}, and versions never go down. To bring the contents of "
            f"v{number} back, release them again: `lamella rollout restore`."
        )
