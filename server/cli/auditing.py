"""What commands that change something write into the audit log: who at the terminal, what, and how it ended."""

from __future__ import annotations

import getpass
import os
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from delta_updates import DeltaError
from server.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.registry import Registry


@contextmanager
def audited(registry: Registry, action: str, subject: str, *, is_long: bool = False) -> Iterator[None]:
    """Write into the audit log what happens inside: done, or why not.

    The entry and what it tells of are one transaction: neither is there without the other. What is long has many.

    Args:
        registry: Where the log is.
        action: What is done, such as `device.revoke`.
        subject: To what; never a secret.
        is_long: Write down the start as well: a command that takes minutes may be killed.
    """
    if is_long:
        _record(registry, action, subject, "started")
    try:
        with nullcontext() if is_long else registry.together():
            yield
            _record(registry, action, subject, "done")
    except BaseException as error:
        # Our own errors are written for people to read; of any other only the kind is safe to keep.
        reason = str(error) if isinstance(error, ServerError | DeltaError) else type(error).__name__
        _record(registry, action, subject, f"failed: {reason}")
        raise


def note_done(registry: Registry, action: str, subject: str) -> None:
    """Write down what was done before there was a registry."""
    _record(registry, action, subject, "done")


def person_at_terminal() -> str:
    """The account on this machine that runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return f"uid {os.getuid()}"


def _record(registry: Registry, action: str, subject: str, outcome: str) -> None:
    registry.record_audit(actor=person_at_terminal(), via="cli", action=action, subject=subject, outcome=outcome)
