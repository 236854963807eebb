"""Connections and transactions: SQLite and PostgreSQL behave alike from here on."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from threading import local
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InvalidatePoolError,
    NoSuchModuleError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.orm import Session

from server.errors import ConfigurationError, ConflictError, DatabaseError, InvalidRecordError
from server.registry.changes import CURRENT_TOKEN, WatchedSession
from server.registry.tables import ModelRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from sqlite3 import Connection as SqliteConnection

    from sqlalchemy import Row, Select
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

# NaN has no JSON, and PostgreSQL would not read it back.
_to_json = partial(json.dumps, allow_nan=False, sort_keys=True)
_BUSY_TIMEOUT_MS = 15_000
# As many as there are threads that answer requests: what exceeds the pool's size is connected anew each time.
_POOL: Final = {"pool_size": 16, "max_overflow": 24}
_USED_AT: Final = "lamella_used_at"
_RESTED_S: Final = 1.0
_WRITING = {"lamella_begin": "BEGIN IMMEDIATE"}


def make_engine(url: str) -> Engine:
    """An engine for ``sqlite:///...`` or ``postgresql+psycopg://...``.

    Raises:
        ConfigurationError: Another database, or not a URL. The message does not show the URL's password.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
            raise ConfigurationError(
                f"The registry runs on SQLite or PostgreSQL, not on {parsed.get_backend_name()!r} "
                f"({parsed.render_as_string(hide_password=True)}). Set LAMELLA_DATABASE_URL."
            )
        is_postgresql = parsed.get_backend_name() == "postgresql"
        engine = create_engine(
            parsed,
            json_serializer=_to_json,
            **(_POOL if is_postgresql else {}),
            # Whatever the database was made with: psycopg answers with bytes where no encoding is set.
            connect_args={"client_encoding": "utf8"} if is_postgresql else {},
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError):
        raise ConfigurationError(
            "LAMELLA_DATABASE_URL is no URL that SQLAlchemy reads. Example: postgresql://user:password@host/database"
        ) from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        _ping_after_a_rest(engine)
    return engine


def _ping_after_a_rest(engine: Engine) -> None:
    """Try a connection that was unused for a while before it is used: the server may have closed it meanwhile.

    Trying all of them each time would cost as much as the smaller reads.
    """

    def note(_connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_USED_AT] = time.monotonic()

    def ping(connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
        if time.monotonic() - record.info.get(_USED_AT, math.inf) < _RESTED_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            # All of the pool, which was closed with it; the caller gets a new one.
            raise InvalidatePoolError from error

    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", ping)


def _prepare_sqlite(connection: SqliteConnection, _record: object) -> None:
    # The driver would open transactions on its own, and late; `_begin_sqlite` does it instead.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    # FULL: a privacy event that was committed survives a power cut, also in WAL mode.
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at the start: upgrading a read lock later could fail without waiting.
    connection.exec_driver_sql(connection.get_execution_options().get("lamella_begin", "BEGIN"))


def translate(error: SQLAlchemyError) -> Exception:
    """The registry's own error for a database error; parameters and URLs stay out of the message."""
    if isinstance(error, IntegrityError):
        return ConflictError(f"The registry refused: {error.orig}")
    if isinstance(error, DBAPIError):
        return DatabaseError(f"The registry's database does not answer: {error.orig}. Check LAMELLA_DATABASE_URL.")
    if isinstance(error, StatementError):
        return InvalidRecordError(f"These values cannot be recorded: {error.orig}")
    return DatabaseError(f"The registry's database failed: {type(error).__name__}.")


class NeedsDatabaseError(Exception):
    """Something inside `from_memory` is not in memory."""


class Transactions:
    """Base of the registry's parts: one method there is one transaction, or part of one `together`."""

    def __init__(self, engine: Engine, *, now: Callable[[], datetime] | None = None) -> None:
        self._engine = engine
        self._now = now or (lambda: datetime.now(UTC))
        self._mine = local()
        # PostgreSQL: one statement is a transaction by itself, without BEGIN and COMMIT around it.
        is_sqlite = engine.dialect.name == "sqlite"
        self._bare = engine if is_sqlite else engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let what this thread writes inside be one transaction: all of it, or nothing when something is raised.

        It begins with the first write, so that what is worked out before holds up nobody.

        Raises:
            DatabaseError: The database does not answer.
            ConflictError: It refuses.
        """
        if getattr(self._mine, "unit", None) is not None:
            raise RuntimeError("together() inside together().")
        try:
            with ExitStack() as unit:
                self._mine.unit, self._mine.joint = unit, None
                try:
                    yield
                finally:
                    self._mine.unit = self._mine.joint = None
        except SQLAlchemyError as error:
            raise translate(error) from error

    @contextmanager
    def from_memory(self) -> Iterator[None]:
        """Let what this thread does inside wait for no database: for code that must not keep others waiting.

        Raises:
            NeedsDatabaseError: Something inside would have asked it. Nothing was read or written.
        """
        self._mine.is_from_memory = True
        try:
            yield
        finally:
            self._mine.is_from_memory = False

    def _require_database(self) -> None:
        if getattr(self._mine, "is_from_memory", False):
            raise NeedsDatabaseError

    @contextmanager
    def _read(self) -> Iterator[Session]:
        self._require_database()
        shared: Session | None = getattr(self._mine, "joint", None)
        try:
            if shared is not None:
                yield shared
                return
            with Session(self._engine) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            raise translate(error) from error

    def _glance(self, query: Select[Any], **values: object) -> Sequence[Row[Any]]:
        """The rows that one query finds: the cheapest way to read."""
        self._require_database()
        shared: Session | None = getattr(self._mine, "joint", None)
        try:
            if shared is not None:
                return shared.execute(query, values).all()
            try:
                return self._look(query, values)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The server was restarted just now. Nothing was written, so it can be asked again.
                return self._look(query, values)
        except SQLAlchemyError as error:
            raise translate(error) from error

    def _look(self, query: Select[Any], values: dict[str, object]) -> Sequence[Row[Any]]:
        with self._bare.connect() as connection:
            return connection.execute(query, values).all()

    @contextmanager
    def _write(self) -> Iterator[Session]:
        self._require_database()
        unit: ExitStack | None = getattr(self._mine, "unit", None)
        try:
            if unit is None:
                with self._transaction() as session:
                    yield session
                return
            if self._mine.joint is None:
                self._mine.joint = unit.enter_context(self._transaction())
            # A write that is refused takes back its own part alone, as it would by itself.
            with self._mine.joint.begin_nested():
                yield self._mine.joint
        except SQLAlchemyError as error:
            raise translate(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[WatchedSession]:
        with WatchedSession(self._engine.execution_options(**_WRITING)) as session, session.begin():
            yield session
            session.tell()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """One writing transaction on a plain connection."""
        self._require_database()
        try:
            with self._engine.execution_options(**_WRITING).begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise translate(error) from error

    def change_token(self) -> str:
        """A token that is another one after every write which may change what a device is answered.

        Raises:
            DatabaseError: The database does not answer.
        """
        (row,) = self._glance(CURRENT_TOKEN)
        return str(row.token)

    @property
    def engine(self) -> Engine:
        """What the transactions run on, for who watches it."""
        return self._engine

    def ping(self) -> None:
        """Ask the database for one row.

        Raises:
            DatabaseError: It does not answer.
        """
        with self._read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def require_json(**values: object) -> None:
    """Refuse values that have no JSON, before a database sees them.

    Raises:
        InvalidRecordError: One of them is not finite, or of a kind that JSON does not know.
    """
    for name, value in values.items():
        try:
            _to_json(value)
        except (TypeError, ValueError) as error:
            raise InvalidRecordError(f"The {name} cannot be recorded: {error}.") from error


def ensure_model(session: Session, name: str) -> None:
    """Make the row of a model when it is new, also when another process makes it at the same time."""
    if session.get(ModelRow, name) is not None:
        return
    try:
        with session.begin_nested():
            session.add(ModelRow(name=name, last_version=0))
    except IntegrityError:
        session.expire_all()


def lock_model(session: Session, name: str) -> None:
    """Let one transaction at a time release, withdraw or roll out versions of a model; SQLite has one writer anyway."""
    session.execute(select(ModelRow.name).where(ModelRow.name == name).with_for_update())
