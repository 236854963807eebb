"""Lines of a ledger, chained by hashes, so that a changed, removed or moved line shows.

A line of format 2 carries the head of the chain before it: the SHA-256 over the previous head and the previous line.
Lines of format 1 carry nothing, but what follows them covers them. Cutting off the end leaves a sound chain: that shows
only against a head kept elsewhere, as every report keeps it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic import ValidationError

from privacy.errors import BrokenChainError, LedgerError
from privacy.event import PrivacyEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

FIRST_HEAD: Final = "0" * 64
LINE_FORMAT: Final = 2
# An event per user names up to 100,000 devices.
MAX_LINE_BYTES: Final = 16 * 1024 * 1024

_RESTORE: Final = "restore the file from a backup"
_KEYS: Final = {1: {"event", "format"}, 2: {"event", "format", "previous"}}


def event_line(event: PrivacyEvent, *, previous: str) -> bytes:
    """The ledger's line for `event` after the head `previous`, newline included: always the same bytes."""
    return _line({"event": _values(event), "format": LINE_FORMAT, "previous": previous})


def head_after(head: str, line: bytes) -> str:
    """The head of a chain once `line` follows, 64 hexadecimal digits."""
    return hashlib.sha256(head.encode() + line.rstrip(b"\n")).hexdigest()


def chained_lines(events: Iterable[PrivacyEvent]) -> tuple[bytes, str]:
    """A whole ledger's bytes, and its head."""
    lines, head = [], FIRST_HEAD
    for event in events:
        line = event_line(event, previous=head)
        lines.append(line)
        head = head_after(head, line)
    return b"".join(lines), head


def parse_chain(raw: bytes, where: str) -> tuple[tuple[PrivacyEvent, ...], tuple[str, ...]]:
    """The events of whole lines, and the head after each of them.

    Raises:
        BrokenChainError: A line does not follow the one before it.
        LedgerError: A line is not an event, or an event is there twice.
    """
    events: dict[str, PrivacyEvent] = {}
    heads: list[str] = []
    newest = 1
    for number, line in enumerate(raw.splitlines(), start=1):
        place = f"{where}, line {number}"
        head = heads[-1] if heads else FIRST_HEAD
        envelope = _envelope(line, place)
        if envelope.form < newest:
            raise BrokenChainError(
                f"{place}: a line of format {envelope.form} after one of format {newest}; {_RESTORE}"
            )
        newest = envelope.form
        if newest > 1 and envelope.previous != head:
            raise BrokenChainError(
                f"{place}: does not follow the lines before it: one was changed, removed or moved; {_RESTORE}"
            )
        event = _event(envelope.event, place)
        if event.event_id in events:
            raise LedgerError(f"{place}: event {event.event_id} is recorded twice")
        events[event.event_id] = event
        heads.append(head_after(head, line))
    return tuple(events.values()), tuple(heads)


def _values(event: PrivacyEvent) -> dict[str, object]:
    # Without what the other unit's events have: the bytes of an event stay the same when a later version adds a field.
    return event.model_dump(mode="json", exclude_none=True)


def _line(envelope: dict[str, object]) -> bytes:
    return json.dumps(envelope, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


class _Envelope(NamedTuple):
    form: int
    previous: object
    event: object


def _envelope(line: bytes, where: str) -> _Envelope:
    if len(line) > MAX_LINE_BYTES:
        raise LedgerError(f"{where}: {len(line)} bytes, more than the {MAX_LINE_BYTES} an event can need")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{where}: not JSON; {_RESTORE}") from error
    for form, keys in _KEYS.items():
        if isinstance(values, dict) and set(values) == keys and values["format"] == form:
            return _Envelope(form, values.get("previous"), values["event"])
    raise LedgerError(f'{where}: not a line of format 1 or 2 ({{"event": ..., "format": 2, "previous": ...}})')


def _event(values: object, where: str) -> PrivacyEvent:
    try:
        return PrivacyEvent.model_validate(values)
    except ValidationError as error:
        raise LedgerError(f"{where}: not a privacy event: {error.errors(include_url=False)[:3]}") from error
