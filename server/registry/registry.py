"""The Registry: one method, one transaction; SQLite by default, PostgreSQL by URL."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Self

from sqlalchemy.exc import SQLAlchemyError

from server.errors import DatabaseError
from server.files import locked, make_folder
from server.registry.audit import AuditTransactions
from server.registry.audit_findings import AuditFindingTransactions
from server.registry.base_family import BaseFamilyTransactions
from server.registry.cases import CaseTransactions
from server.registry.channels import ChannelTransactions
from server.registry.ddi import DdiTransactions
from server.registry.ddi_actions import DdiActionTransactions
from server.registry.ddi_files import DdiFileTransactions
from server.registry.device_policies import PolicyTransactions
from server.registry.devices import DeviceTransactions
from server.registry.fleet import FleetTransactions
from server.registry.migrations import upgrade
from server.registry.offers import OfferTransactions
from server.registry.operators import OperatorTransactions
from server.registry.privacy import PrivacyTransactions
from server.registry.rollouts import RolloutTransactions
from server.registry.runs import RunTransactions
from server.registry.statements import StatementTransactions
from server.registry.transactions import make_engine
from server.registry.upkeep import UpkeepTransactions
from server.registry.versions import VersionTransactions

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from server.config import Settings


class Registry(
    VersionTransactions,
    RunTransactions,
    DeviceTransactions,
    OfferTransactions,
    FleetTransactions,
    RolloutTransactions,
    ChannelTransactions,
    PolicyTransactions,
    CaseTransactions,
    UpkeepTransactions,
    OperatorTransactions,
    AuditTransactions,
    DdiTransactions,
    DdiActionTransactions,
    DdiFileTransactions,
    PrivacyTransactions,
    BaseFamilyTransactions,
    AuditFindingTransactions,
    StatementTransactions,
):
    """What exists and what happened: from versions, rollouts, runs and devices to operators and the audit log.

    Every public method is one transaction and answers with frozen records. Safe to share between threads; several
    processes may open the same database.
    """

    @classmethod
    def open(cls, settings: Settings, *, now: Callable[[], datetime] | None = None) -> Self:
        """Connect, and bring the tables up to this release; processes that start at once wait for each other.

        Raises:
            ConfigurationError: The database URL cannot be used.
            DatabaseError: The database does not answer, or was made by a newer release.
        """
        make_folder(settings.home, mode=0o700)
        registry = cls(make_engine(settings.sqlalchemy_url), now=now)
        try:
            with locked(settings.home / ".registry.lock"):
                registry._prepare()
        except BaseException:
            registry.close()
            raise
        return registry

    def _prepare(self) -> None:
        if self._engine.dialect.name == "sqlite":
            self._use_write_ahead_log()
        with self._connection() as connection:
            upgrade(connection)

    def _use_write_ahead_log(self) -> None:
        """Let readers and one writer not wait for each other; SQLite keeps the mode in the file."""
        try:
            raw = self._engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA journal_mode = WAL")
            finally:
                raw.close()
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise DatabaseError(f"Could not open the registry {self._engine.url.database}: {error}") from error
