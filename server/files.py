"""Durable files of the server's home: replace in one step, make secrets once, lock between processes."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from server.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET_MODE = 0o600
_MAX_SECRET_BYTES = 64 * 1024


def sync_folder(folder: Path) -> None:
    """Make the names inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` so that a power cut leaves the old contents or the new, never a mix.

    Raises:
        StorageError: The disk refused; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"Could not write {path} ({len(content)} bytes): {error.strerror or error}.") from error


def make_folder(folder: Path, *, mode: int = 0o755) -> None:
    """Make ``folder`` and its parents when missing.

    Raises:
        StorageError: The disk refused, or something else bears that name.
    """
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"Could not make the folder {folder}: {error.strerror or error}.") from error


@contextmanager
def locked(lock_file: Path) -> Iterator[None]:
    """Hold an exclusive lock between threads and processes of this machine; waits for its turn.

    The kernel releases it when the process ends, so a crash leaves no stale lock.

    Raises:
        StorageError: The lock file cannot be opened.
    """
    try:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, SECRET_MODE)
    except OSError as error:
        raise StorageError(f"Could not open the lock {lock_file}: {error.strerror or error}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def secret_file(path: Path, make: Callable[[], bytes] | None = None) -> bytes:
    """Read the secret in ``path``; with ``make``, make it first when it is not there (mode 0600).

    Two processes that start at once get the same secret: the file appears complete and only once.

    Raises:
        ConfigurationError: Others may read the file, or it is empty or too long to be a secret.
        StorageError: The disk refused.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        if make is not None and not path.exists():
            write_durably(path, make(), mode=SECRET_MODE)
        return read_secret(path)


def read_secret(path: Path) -> bytes:
    """Read a secret that must be there; needs no place to write, so it may lie on a disk mounted read-only.

    Raises:
        ConfigurationError: Others may read the file, or it is empty or too long to be a secret.
        StorageError: The disk refused, or the file is not there.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise StorageError(f"Could not read {path}: {error.strerror or error}.") from error
    if mode & 0o077:
        raise ConfigurationError(f"{path} has mode {mode:04o}, so others can read it. Run: chmod 600 {path}")
    if not 0 < len(content) <= _MAX_SECRET_BYTES:
        raise ConfigurationError(f"{path} holds {len(content)} bytes, which is no secret. Remove it to make a new one.")
    return content


def operator_token(home: Path) -> str:
    """The operator's token, made in ``home/operator.token`` on first use."""
    make_folder(home, mode=0o700)
    return secret_file(home / "operator.token", lambda: secrets.token_urlsafe(32).encode() + b"\n").decode().strip()
