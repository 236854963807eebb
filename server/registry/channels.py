"""Channels: pointers with history. Withdrawing a release moves them back, and never a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from server.errors import ConflictError, NotFoundError
from server.registry.records import ChannelMoveRecord
from server.registry.rollout_rows import channels_of, halt_open_rollouts, move_channel, offered_versions, rollout_of
from server.registry.rollout_tables import ChannelMoveRow, RolloutRow
from server.registry.tables import ModelRow, VersionRow
from server.registry.transactions import Transactions, lock_model

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from server.rollouts import Rollout


class ChannelTransactions(Transactions):
    """The registry's transactions on channels."""

    def channels(self, model: str) -> tuple[ChannelMoveRecord, ...]:
        """What each channel of a model points at, by name.

        Raises:
            NotFoundError: There is no such model.
        """
        last: dict[str, ChannelMoveRecord] = {move.channel: move for move in self.channel_history(model)}
        return tuple(last[channel] for channel in sorted(last))

    def channel_history(self, model: str, *, channel: str | None = None) -> tuple[ChannelMoveRecord, ...]:
        """All moves of a model's channels, oldest first within a channel.

        Raises:
            NotFoundError: There is no such model.
        """
        query = (
            select(ChannelMoveRow)
            .where(ChannelMoveRow.model == model)
            .order_by(ChannelMoveRow.channel, ChannelMoveRow.position)
        )
        if channel is not None:
            query = query.where(ChannelMoveRow.channel == channel)
        with self._read() as session:
            if session.get(ModelRow, model) is None:
                raise NotFoundError(f"There is no model {model!r}. Import a base first: `lamella base import`.")
            return tuple(_move(row) for row in session.scalars(query))

    def versions_offered(self, model: str) -> frozenset[int]:
        """Versions that a device may still be offered: by a channel, by a rollout that is not over, or to a group."""
        with self._read() as session:
            return offered_versions(session, model)

    def withdraw(self, model: str, number: int, *, reason: str) -> None:
        """Offer a release no more: its rollouts halt, and channels go back to the newest release that is left.

        Devices that run it keep it until a newer release is for them, and then do not wait for their turn. The first
        reason is kept.

        Raises:
            NotFoundError: There is no such version.
            ConflictError: It was never released.
        """
        with self._write() as session:
            lock_model(session, model)
            row = session.get(VersionRow, (model, number))
            if row is None:
                raise NotFoundError(f"There is no v{number} of {model!r}. `lamella versions` lists what there is.")
            if row.state == "withdrawn":
                return
            if row.state != "released":
                raise ConflictError(f"v{number} of {model!r} is {row.state}: only a release can be withdrawn.")
            row.state, row.reason = "withdrawn", reason
            session.flush()
            now, why = self._now(), f"v{number} was withdrawn: {reason}"
            mine = select(RolloutRow).where(RolloutRow.model == model, RolloutRow.version == number)
            halt_open_rollouts(session, mine, reason=why, now=now)
            for channel, version in channels_of(session, model).items():
                if version == number:
                    left = _newest_left(session, model, channel)
                    move_channel(session, model, channel, rollout=left, reason=why, now=now)


def _newest_left(session: Session, model: str, channel: str) -> Rollout | None:
    """The finished rollout of the newest version that a channel has pointed at and that is not withdrawn."""
    row = session.scalar(
        select(RolloutRow)
        .join(ChannelMoveRow, ChannelMoveRow.rollout_id == RolloutRow.rollout_id)
        .join(VersionRow, (VersionRow.model == RolloutRow.model) & (VersionRow.number == RolloutRow.version))
        .where(ChannelMoveRow.model == model, ChannelMoveRow.channel == channel, VersionRow.state == "released")
        .order_by(RolloutRow.version.desc())
        .limit(1)
    )
    return None if row is None else rollout_of(row)


def _move(row: ChannelMoveRow) -> ChannelMoveRecord:
    return ChannelMoveRecord(
        model=row.model,
        channel=row.channel,
        position=row.position,
        version=row.version,
        rollout_id=row.rollout_id,
        reason=row.reason,
        moved_at=row.moved_at,
    )
