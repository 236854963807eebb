"""Slow hashes for what people choose or carry: argon2id."""

from __future__ import annotations

from functools import cache
from threading import BoundedSemaphore
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from server.errors import InvalidRecordError

MIN_PASSWORD: Final = 10
_MAX_PASSWORD: Final = 512
# The least that OWASP recommends for argon2id: 19 MiB, two passes.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
# So that many who try at once take turns instead of all the memory.
_TURNS: Final = BoundedSemaphore(4)


def hash_secret(secret: str) -> str:
    """The argon2id hash of a secret, with its own salt and parameters in it."""
    with _TURNS:
        return _HASHER.hash(secret)


def is_secret(secret: str, hashed: str | None) -> bool:
    """Whether ``hashed`` was made from ``secret``.

    With nothing to compare, as for a name that does not exist, it takes as long and is False.
    """
    with _TURNS:
        try:
            return _HASHER.verify(hashed or _decoy(), secret) and hashed is not None
        except (VerificationError, InvalidHashError):
            return False


def check_password(password: str) -> str:
    """A password that may be set.

    Raises:
        InvalidRecordError: Too short, or longer than anybody types.
    """
    if not MIN_PASSWORD <= len(password) <= _MAX_PASSWORD:
        raise InvalidRecordError(
            f"A password has {MIN_PASSWORD} to {_MAX_PASSWORD} characters. Several words are easy to remember."
        )
    return password


@cache
def _decoy() -> str:
    return _HASHER.hash("nobody's")
