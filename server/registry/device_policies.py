"""What operators decided about single devices, and the facts by which a device is given a version."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import or_, select

from delta_updates import Outcome
from server.errors import ConflictError, InvalidRecordError, NotFoundError
from server.registry.records import DeviceCase, DevicePolicyRecord
from server.registry.rollout_rows import channel_pointer, facts_of, rollout_of
from server.registry.rollout_tables import DevicePolicyRow, RolloutRow
from server.registry.rollouts import is_due
from server.registry.tables import DeviceRow, OfferRow, ReportRow, VersionRow
from server.registry.transactions import Transactions
from server.rollouts import STABLE, Release

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import Session

    from server.rollouts import DeviceFacts

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
            return _policy(device_id, session.get(DevicePolicyRow, device_id))

    def device_policies(self) -> Mapping[str, DevicePolicyRecord]:
        """What operators decided, by device id; devices with the defaults are not in it."""
        with self._read() as session:
            return {row.device_id: _policy(row.device_id, row) for row in session.scalars(select(DevicePolicyRow))}

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
            return _policy(device_id, row)

    def device_case(self, device_id: str, *, installed_version: int | None, is_full: bool = False) -> DeviceCase:
        """All that decides which version a device shall have.

        Args:
            device_id: The device.
            installed_version: What it says it runs.
            is_full: With the rollouts of channels that it is not on, for an operator who wonders.

        Raises:
            NotFoundError: There is no such device.
        """
        with self._read() as session:
            device, policy = _device_and_policy(session, device_id)
            facts = facts_of(device, policy, installed_version=installed_version)
            rows = _rollouts(session, device.model, facts, is_full=is_full)
            now = self._now()
            numbers = {row.version for row in rows} | {installed_version, facts.forced_version}
            return DeviceCase(
                facts=_with_reverted(session, device, facts) if _is_behind(facts, numbers) else facts,
                releases=_releases(session, device.model, {number for number in numbers if number}),
                rollouts=tuple(rollout_of(row) for row in rows),
                due=tuple(row.rollout_id for row in rows if is_due(row, now)),
                now=now,
            )


def _tags(known: Iterable[str], changes: Mapping[str, Iterable[str]]) -> list[str]:
    kept = set(changes.get("tags", known)) - set(changes.get("remove_tags", ()))
    return sorted(kept | set(changes.get("add_tags", ())))


def _rollouts(session: Session, model: str, facts: DeviceFacts, *, is_full: bool) -> list[RolloutRow]:
    """What the device's channels point at, and all rollouts of newer versions."""
    pointers = [
        pointer
        for channel in sorted(facts.channels)
        if (pointer := channel_pointer(session, model, channel)) is not None and pointer.version is not None
    ]
    newest = max((pointer.version or 0 for pointer in pointers), default=0)
    query = select(RolloutRow).where(
        RolloutRow.model == model,
        or_(
            RolloutRow.version > newest,
            RolloutRow.rollout_id.in_([pointer.rollout_id for pointer in pointers if pointer.version == newest]),
        ),
    )
    if not is_full:
        query = query.where(RolloutRow.channel.in_(sorted(facts.channels)))
    return list(session.scalars(query))


def _releases(session: Session, model: str, numbers: set[int]) -> dict[int, Release]:
    rows = session.execute(
        select(VersionRow.number, VersionRow.state, VersionRow.reason).where(
            VersionRow.model == model,
            VersionRow.number.in_(sorted(numbers)),
            VersionRow.state.in_(("released", "withdrawn")),
        )
    )
    return {number: Release(number=number, state=cast("Any", state), reason=reason) for number, state, reason in rows}


def _is_behind(facts: DeviceFacts, numbers: set[int | None]) -> bool:
    return max((number or 0 for number in numbers), default=0) > (facts.installed_version or 0)


def _with_reverted(session: Session, device: DeviceRow, facts: DeviceFacts) -> DeviceFacts:
    numbers = session.scalars(
        select(OfferRow.version)
        .join(ReportRow, ReportRow.offer_id == OfferRow.offer_id)
        .where(
            OfferRow.device_id == device.device_id,
            OfferRow.model == device.model,
            OfferRow.version > (facts.installed_version or 0),
            ReportRow.outcome == Outcome.REVERTED,
        )
    )
    return replace(facts, reverted=frozenset(numbers))


def _device(session: Session, device_id: str) -> DeviceRow:
    row = session.get(DeviceRow, device_id)
    if row is None:
        raise NotFoundError(f"There is no device {device_id!r}. `lamella devices list` shows what there is.")
    return row


def _device_and_policy(session: Session, device_id: str) -> tuple[DeviceRow, DevicePolicyRow | None]:
    found = session.execute(
        select(DeviceRow, DevicePolicyRow)
        .outerjoin(DevicePolicyRow, DevicePolicyRow.device_id == DeviceRow.device_id)
        .where(DeviceRow.device_id == device_id)
    ).one_or_none()
    if found is None:
        return _device(session, device_id), None
    device, policy = found
    return device, policy


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


def _policy(device_id: str, row: DevicePolicyRow | None) -> DevicePolicyRecord:
    if row is None:
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
