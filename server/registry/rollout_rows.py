"""Rows of rollouts and channels inside a transaction: reading, compare-and-set, pointing a channel elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from sqlalchemy import or_, select, update

from server.errors import ConflictError, NotFoundError
from server.registry.rollout_tables import ChannelMoveRow, DevicePolicyRow, RolloutChangeRow, RolloutRow
from server.registry.tables import DeviceRow
from server.rollouts import STABLE, DeviceFacts, Rollout, RolloutPlan, halted, is_meant_for, position_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from server.rollouts import Launch, RolloutState

OPEN = ("draft", "running", "paused")


def find_rollout(session: Session, rollout_id: int) -> RolloutRow:
    """The row of a rollout.

    Raises:
        NotFoundError: There is none.
    """
    row = session.get(RolloutRow, rollout_id)
    if row is None:
        raise NotFoundError(f"There is no rollout {rollout_id}. `lamella rollout list` lists what there is.")
    return row


def rollout_of(row: RolloutRow) -> Rollout:
    """A row as the rules see it."""
    return Rollout(
        rollout_id=row.rollout_id,
        model=row.model,
        version=row.version,
        plan=RolloutPlan.model_validate(row.plan),
        state=cast("RolloutState", row.state),
        phase=row.phase,
        phase_started_at=row.phase_started_at,
        phase_devices=row.phase_devices,
        reason=row.reason,
        revision=row.revision,
        created_at=row.created_at,
    )


def launch_rollout(session: Session, *, model: str, version: int, launch: Launch, now: datetime) -> Rollout:
    """Make a rollout of a released version, and do what follows from its first state."""
    plan, is_running = launch.plan, launch.state == "running"
    row = RolloutRow(
        model=model,
        version=version,
        plan=plan.model_dump(mode="json"),
        channel=plan.channel,
        state=launch.state,
        phase=len(plan.phases) - 1 if launch.state == "finished" else 0,
        phase_started_at=max(now, plan.not_before or now) if is_running else None,
        phase_devices=0,
        reason={"draft": "made", "running": "started", "finished": "released to everybody it is for at once"}[
            launch.state
        ],
        revision=1,
        created_at=now,
    )
    session.add(row)
    session.flush()
    if is_running:
        row.phase_devices = count_phase(session, rollout_of(row))
    rollout = rollout_of(row)
    _note_change(session, rollout, now)
    if rollout.state == "finished":
        _after_finish(session, rollout, now)
    return rollout


def save_rollout(session: Session, before: Rollout, after: Rollout, *, now: datetime) -> Rollout:
    """Replace what was seen by what follows from it, and do what follows from that.

    Raises:
        ConflictError: Somebody else changed it meanwhile.
    """
    after = replace(after, revision=before.revision + 1)
    if after.state == "running" and (before.state == "draft" or after.phase != before.phase):
        after = replace(after, phase_devices=count_phase(session, after))
    changed = session.execute(
        update(RolloutRow)
        .where(RolloutRow.rollout_id == before.rollout_id, RolloutRow.revision == before.revision)
        .values(
            state=after.state,
            phase=after.phase,
            phase_started_at=after.phase_started_at,
            phase_devices=after.phase_devices,
            reason=after.reason,
            revision=after.revision,
        )
        .returning(RolloutRow.rollout_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if changed is None:
        raise ConflictError(
            f"{before.name} was changed by somebody else meanwhile. Look again and decide: `lamella rollout show`."
        )
    _note_change(session, after, now)
    if after.state == "finished":
        _after_finish(session, after, now)
    return after


def halt_open_rollouts(session: Session, query: Select[RolloutRow], *, reason: str, now: datetime) -> None:
    """Halt those of the query's rollouts that are not over."""
    for row in session.scalars(query.where(RolloutRow.state.in_(OPEN))).all():
        rollout = rollout_of(row)
        save_rollout(session, rollout, halted(rollout, reason), now=now)


def channel_pointer(session: Session, model: str, channel: str) -> ChannelMoveRow | None:
    """The last move of a channel; None when it never pointed at anything."""
    return session.scalar(
        select(ChannelMoveRow)
        .where(ChannelMoveRow.model == model, ChannelMoveRow.channel == channel)
        .order_by(ChannelMoveRow.position.desc())
        .limit(1)
    )


def offered_versions(session: Session, model: str) -> frozenset[int]:
    """Versions that a device may still be offered: by a channel, by a rollout that is not over, or to a group."""
    pointed_at = {version for version in channels_of(session, model).values() if version is not None}
    rows = session.scalars(
        select(RolloutRow).where(
            RolloutRow.model == model,
            RolloutRow.state.in_((*OPEN, "finished")),
            RolloutRow.version > min(pointed_at, default=0),
        )
    )
    kept = {row.version for row in rows if row.state in OPEN or not rollout_of(row).plan.is_for_everybody}
    return frozenset(pointed_at | kept)


def channels_of(session: Session, model: str) -> dict[str, int | None]:
    """The version that each channel points at now."""
    moves = session.scalars(
        select(ChannelMoveRow).where(ChannelMoveRow.model == model).order_by(ChannelMoveRow.position)
    )
    return {move.channel: move.version for move in moves}


def move_channel(
    session: Session, model: str, channel: str, *, rollout: Rollout | None, reason: str, now: datetime
) -> None:
    """Point a channel at the version of a finished rollout, or at nothing; two who do it at once conflict."""
    last = channel_pointer(session, model, channel)
    session.add(
        ChannelMoveRow(
            model=model,
            channel=channel,
            position=1 if last is None else last.position + 1,
            version=None if rollout is None else rollout.version,
            rollout_id=None if rollout is None else rollout.rollout_id,
            reason=reason,
            moved_at=now,
        )
    )
    session.flush()


def facts_of(device: DeviceRow, policy: DevicePolicyRow | None, *, installed_version: int | None) -> DeviceFacts:
    """What the rules look at in a device, without its reverted versions."""
    if policy is None:
        return DeviceFacts(device_id=device.device_id, installed_version=installed_version)
    return DeviceFacts(
        device_id=device.device_id,
        installed_version=installed_version,
        channel=policy.channel,
        group=policy.group_name,
        tags=frozenset(policy.tags),
        is_opted_out=policy.is_opted_out,
        forced_version=policy.forced_version,
    )


def devices_meant(session: Session, rollout: Rollout) -> Iterator[str]:
    """The ids of the devices that a rollout has still to move, in whatever phase."""
    query = (
        select(DeviceRow, DevicePolicyRow)
        .outerjoin(DevicePolicyRow, DevicePolicyRow.device_id == DeviceRow.device_id)
        .where(
            DeviceRow.model == rollout.model,
            DeviceRow.revoked_at.is_(None),
            or_(DeviceRow.installed_version.is_(None), DeviceRow.installed_version < rollout.version),
        )
    )
    if rollout.plan.channel != STABLE:
        query = query.where(DevicePolicyRow.channel == rollout.plan.channel)
    for device, policy in session.execute(query.execution_options(yield_per=2000)):
        if is_meant_for(rollout, facts_of(device, policy, installed_version=device.installed_version)):
            yield device.device_id


def count_phase(session: Session, rollout: Rollout) -> int:
    """Devices that come into reach with the current phase."""
    below = rollout.plan.phases[rollout.phase - 1] if rollout.phase else 0.0
    return sum(
        below <= position_of(rollout.rollout_id, device_id) < rollout.percentage
        for device_id in devices_meant(session, rollout)
    )


def _after_finish(session: Session, rollout: Rollout, now: datetime) -> None:
    if not rollout.plan.is_for_everybody:
        return
    channel = rollout.plan.channel
    last = channel_pointer(session, rollout.model, channel)
    if last is not None and last.version is not None and last.version >= rollout.version:
        return
    move_channel(session, rollout.model, channel, rollout=rollout, reason=f"{rollout.name} is finished", now=now)
    superseded = select(RolloutRow).where(
        RolloutRow.model == rollout.model, RolloutRow.channel == channel, RolloutRow.version < rollout.version
    )
    reason = f"v{rollout.version} is everybody's on channel {channel} now"
    halt_open_rollouts(session, superseded, reason=reason, now=now)


def _note_change(session: Session, rollout: Rollout, now: datetime) -> None:
    session.add(
        RolloutChangeRow(
            rollout_id=rollout.rollout_id,
            revision=rollout.revision,
            state=rollout.state,
            phase=rollout.phase,
            reason=rollout.reason,
            changed_at=now,
        )
    )
