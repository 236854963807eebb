"""A rollout's devices inside a transaction: whom it offered its version to, and what they reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from delta_updates import Outcome
from server.errors import ConflictError
from server.registry.rollout_tables import RolloutDeviceRow, RolloutRow

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from delta_updates import OutcomeReport

_OFFERED: Final = "offered"
_LOCK_ROLLOUT: Final = (
    select(RolloutRow.state, RolloutRow.phase)
    .where(RolloutRow.rollout_id == bindparam("offering"))
    .with_for_update(read=True)
)
# Reports may come late or twice, so what counts is the furthest that a device came. A failed attempt is followed by
# another, which may succeed, and an owner may raise the limit that declined it; what was reverted never comes back.
_ORDER: Final = (
    _OFFERED,
    Outcome.DOWNLOADED,
    Outcome.APPLIED,
    Outcome.TESTED,
    Outcome.DECLINED,
    Outcome.FAILED,
    Outcome.CONFIRMED,
    Outcome.REVERTED,
)


def note_offered(connection: Connection, rollout_id: int, device_id: str) -> None:
    """Count a device as one of the rollout's current phase, unless it is one already.

    Raises:
        ConflictError: The rollout was stopped since the offer was decided on.
    """
    # Locked against the change that would stop it: a halted rollout moves no further device.
    rollout = connection.execute(_LOCK_ROLLOUT, {"offering": rollout_id}).one_or_none()
    if rollout is None or rollout.state not in {"running", "finished"}:
        raise ConflictError(f"Rollout {rollout_id} was stopped.")
    made = {"rollout_id": rollout_id, "device_id": device_id, "phase": rollout.phase, "outcome": _OFFERED}
    # Another request of this device may have been quicker.
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(insert(RolloutDeviceRow).on_conflict_do_nothing(), made)


def note_outcome(session: Session, rollout_id: int, device_id: str, report: OutcomeReport) -> bool:
    """Keep how far a device came, and what it measured; whether the rollout may still follow from that."""
    rollout, row = session.get(RolloutRow, rollout_id), session.get(RolloutDeviceRow, (rollout_id, device_id))
    if rollout is None or row is None:
        return False
    row.outcome = max(row.outcome, report.outcome.value, key=_ORDER.index)
    if report.quality is not None:
        row.loss_increase = report.quality.loss_increase
        row.tokens_per_second = report.quality.tokens_per_second
        row.memory_bytes = report.quality.memory_bytes
    return rollout.state in {"running", "paused"}
