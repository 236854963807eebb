"""Alembic migrations of the registry, run from code: there is no alembic.ini.

A new migration is a new file in ``versions``, written by hand after the one before it; the tests compare what all
of them make with the tables, and run each one down and up again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import text

from server.errors import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["downgrade", "upgrade"]

# Any fixed number that no other program on the same PostgreSQL is likely to lock.
_POSTGRES_LOCK = 0x1A3E11A


def upgrade(connection: Connection) -> None:
    """Bring the tables up to this release, in the caller's transaction; others who try wait.

    Raises:
        DatabaseError: The database was made by a newer release.
    """
    _lock(connection)
    try:
        command.upgrade(_config(connection), "head")
    except CommandError as error:
        raise DatabaseError(
            f"This release cannot read the registry ({error}). Start the release that made it."
        ) from error


def downgrade(connection: Connection, revision: str) -> None:
    """Take the tables back to ``revision`` (``base``: no tables at all), in the caller's transaction."""
    _lock(connection)
    command.downgrade(_config(connection), revision)


def _lock(connection: Connection) -> None:
    # SQLite's writing transaction is the lock already.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
