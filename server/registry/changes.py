"""Has anything changed that a device could be answered differently for? A token, new with every such write."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from sqlalchemy import event, inspect, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from server.registry.tables import Base, DeviceRow

if TYPE_CHECKING:
    from sqlalchemy import Update
    from sqlalchemy.orm import ORMExecuteState, UOWTransaction

_LOUD: Final = "is_loud"
# Rows that are written all the time and change the answer to no device, or only to the one that wrote them and that
# asks another question from then on. Every other table counts, also one that nobody has thought of here.
_QUIET: Final = frozenset(
    {"offers", "reports", "rounds", "privacy_events", "enrolment_tokens", "runs", "changes", "rollout_devices"}
    | {"privacy_chain", "privacy_budgets", "noise_keys", "base_origins", "audit_findings", "privacy_statements"}
    | {"audit_history", "example_budgets"}
    | {"operators", "operator_tokens", "sessions", "audit_log"}
    | {"ddi_actions", "ddi_controllers", "ddi_digests", "ddi_gateway_tokens", "ddi_images"}
)
_QUIET_OF_DEVICES: Final = frozenset({"last_seen_at", "installed_version", "installed_hash", "free_bytes"})


class ChangeRow(Base):
    """One row: a random token, replaced by every write that may change an answer."""

    __tablename__ = "changes"

    change_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    token: Mapped[str]


class WatchedSession(Session):
    """A session that knows whether what it wrote may change an answer."""

    def tell(self) -> None:
        """Replace the token if so; the last thing before the commit."""
        self.flush()
        if self.info.get(_LOUD):
            self.execute(_new_token())


CURRENT_TOKEN: Final = select(ChangeRow.__table__.c.token)
"""The query for the token as it is now."""


def _new_token() -> Update:
    return update(ChangeRow).values(token=secrets.token_hex(32))


@event.listens_for(WatchedSession, "before_flush")
def _before_flush(session: Session, _context: UOWTransaction, _instances: object) -> None:
    changed = (*session.deleted, *session.new, *(row for row in session.dirty if session.is_modified(row)))
    if any(_is_loud(row, is_new=row in session.new) for row in changed):
        session.info[_LOUD] = True


@event.listens_for(WatchedSession, "do_orm_execute")
def _on_execute(state: ORMExecuteState) -> None:
    if state.is_update or state.is_insert or state.is_delete:
        mapper = state.bind_mapper
        if mapper is None or str(mapper.local_table) not in _QUIET:
            state.session.info[_LOUD] = True


def _is_loud(row: object, *, is_new: bool) -> bool:
    table = str(inspect(row).mapper.local_table)
    if table in _QUIET:
        return False
    if isinstance(row, DeviceRow):
        written = {attribute.key for attribute in inspect(row).attrs if attribute.history.has_changes()}
        return not is_new and not written <= _QUIET_OF_DEVICES
    return True
