"""A throw-away PostgreSQL on a unix socket, started from the machine's own binaries and never as root."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

WHY_SKIPPED = (
    "no pg_ctl found: not in LAMELLA_TEST_PG_BIN, not on PATH, not in /usr/lib/postgresql/*/bin "
    "(Debian: apt-get install postgresql; or name the folder in LAMELLA_TEST_PG_BIN)"
)


def find_pg_bin() -> Path | None:
    """The folder of pg_ctl and initdb, or None when this machine has none."""
    named, on_path = os.environ.get("LAMELLA_TEST_PG_BIN"), shutil.which("pg_ctl")
    folders = [Path(named)] if named else []
    folders += [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists() and (folder / "initdb").exists()), None)


class PostgresServer:
    """A running server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new_url(self) -> str:
        """The URL of a new, empty schema: as good as a database of its own, and much quicker to make and remove."""
        name = f"lamella_{uuid.uuid4().hex}"
        with psycopg.connect(f"host={self._folder} user=lamella dbname=postgres", autocommit=True) as connection:
            connection.execute(f'CREATE SCHEMA "{name}"')
        return f"postgresql://lamella@/postgres?host={self._folder}&options=-csearch_path%3D{name}"


@contextmanager
def running_postgres(pg_bin: Path) -> Iterator[PostgresServer]:
    """Start a server in a temporary folder, and stop it at the end."""
    # Not under pytest's folders: a socket's path may be at most 107 bytes long, and another user must reach it.
    folder = Path(tempfile.mkdtemp(prefix="lamella-pg-"))
    owner = _owner()
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)

    def call(*command: str) -> None:
        user = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        done = subprocess.run(
            [str(pg_bin / command[0]), *command[1:]],
            check=False,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **user,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")

    data, log = str(folder / "data"), str(folder / "log")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=60"
    try:
        call("initdb", "-D", data, "-U", "lamella", "--auth=trust", "--encoding=UTF8", "--locale=C")
        call("pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "start")
        try:
            yield PostgresServer(folder)
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _owner() -> pwd.struct_passwd | None:
    """Whom to run as when the tests run as root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return pwd.getpwnam("postgres" if "postgres" in names else "nobody")
