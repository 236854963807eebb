"""What happened to people's data, kept append-only; what it cost is the accountant's business."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal, Protocol
from uuid import uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from privacy.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

LINE_FORMAT = 1
MAX_LEDGER_BYTES = 256 * 1024 * 1024
MAX_LINE_BYTES = 8 * 1024


Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$")]
EventId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
StepCount = Annotated[int, Field(ge=1, le=10_000_000)]


def new_event_id() -> str:
    """A fresh random identifier: 32 hexadecimal digits."""
    return uuid4().hex


class PrivacyEvent(BaseModel):
    """One device's noisy training in one round: everything the accountant needs, and nothing about the data.

    `sampling_probability` is the chance with which each example entered each step, independently (Poisson sampling).
    `noise_multiplier` is the noise's standard deviation divided by `clipping_norm`; 0 is honest and costs ε = infinity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: EventId = Field(default_factory=new_event_id)
    run_id: Identifier
    server_round: int = Field(ge=0)
    device_id: Identifier
    privacy_unit: Literal["example"] = "example"
    mechanism: Literal["poisson_subsampled_gaussian"] = "poisson_subsampled_gaussian"
    noise_multiplier: float = Field(ge=0, allow_inf_nan=False)
    sampling_probability: Probability
    steps: StepCount
    clipping_norm: PositiveFloat
    target_delta: Delta
    recorded_at: AwareDatetime

    @field_validator("recorded_at")
    @classmethod
    def _in_utc(cls, value: datetime) -> datetime:
        return value.astimezone(UTC)


class PrivacyLedger(Protocol):
    """An append-only record of privacy events; a file here, a database table in the server."""

    def append(self, event: PrivacyEvent) -> None:
        """Record `event` durably. When this returns, a power cut no longer loses it."""

    def events(self, *, device_id: str | None = None) -> tuple[PrivacyEvent, ...]:
        """Every event in the order of recording, or those of one device."""


class JsonlLedger:
    """A ledger in one file of JSON lines, readable by its owner only, safe with several writers at once.

    Each line is `{"event": {...}, "format": 1}`. The envelope leaves room for a later format with chained hashes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: PrivacyEvent) -> None:
        """Write `event` and flush it to the disk before returning.

        Raises:
            LedgerError: the event is already there, or the file cannot be trusted or written.
        """
        line = event_line(event)
        with self._locked(write=True) as descriptor:
            raw = _read_all(descriptor, self.path)
            whole = _whole_lines(raw, self.path)
            if any(known.event_id == event.event_id for known in _parse(whole, self.path)):
                raise LedgerError(f"event {event.event_id} is already in {self.path}; an event is recorded once")
            if len(whole) < len(raw):
                # The torn line was never acknowledged, so nothing was released on its account.
                os.ftruncate(descriptor, len(whole))
            _write_all(descriptor, line)
            os.fsync(descriptor)

    def events(self, *, device_id: str | None = None) -> tuple[PrivacyEvent, ...]:
        """Every event in the order of recording, or those of one device; none when the file does not exist yet.

        Raises:
            LedgerError: a line other than a torn last one is not a valid event, or an event is there twice.
        """
        if not self.path.exists():
            return ()
        with self._locked(write=False) as descriptor:
            whole = _whole_lines(_read_all(descriptor, self.path), self.path)
        events = _parse(whole, self.path)
        return tuple(event for event in events if device_id is None or event.device_id == device_id)

    @contextmanager
    def _locked(self, *, write: bool) -> Iterator[int]:
        """The file's descriptor under an advisory lock that ends with the descriptor, also when the process dies."""
        is_new = write and not self.path.exists()
        flags = (os.O_RDWR | os.O_CREAT | os.O_APPEND) if write else os.O_RDONLY
        try:
            if is_new:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(f"cannot open the ledger {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
            yield descriptor
            if is_new:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise LedgerError(f"cannot use the ledger {self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)


def event_line(event: PrivacyEvent) -> bytes:
    """The ledger's line for `event`, newline included: the same bytes for the same event, always."""
    envelope = {"event": event.model_dump(mode="json"), "format": LINE_FORMAT}
    return json.dumps(envelope, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _parse(raw: bytes, path: Path) -> tuple[PrivacyEvent, ...]:
    events: dict[str, PrivacyEvent] = {}
    for number, line in enumerate(raw.splitlines(), start=1):
        event = _parse_line(line, f"{path}, line {number}")
        if event.event_id in events:
            raise LedgerError(f"{path}, line {number}: event {event.event_id} is recorded twice")
        events[event.event_id] = event
    return tuple(events.values())


def _parse_line(line: bytes, where: str) -> PrivacyEvent:
    if len(line) > MAX_LINE_BYTES:
        raise LedgerError(f"{where}: {len(line)} bytes, more than the {MAX_LINE_BYTES} an event can need")
    try:
        envelope = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{where}: not JSON; restore the file from a backup") from error
    if not isinstance(envelope, dict) or set(envelope) != {"event", "format"} or envelope["format"] != LINE_FORMAT:
        raise LedgerError(f'{where}: not a line of format {LINE_FORMAT} ({{"event": ..., "format": {LINE_FORMAT}}})')
    try:
        return PrivacyEvent.model_validate(envelope["event"])
    except ValidationError as error:
        raise LedgerError(f"{where}: not a privacy event: {error.errors(include_url=False)[:3]}") from error


def _whole_lines(raw: bytes, path: Path) -> bytes:
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        _log.warning("dropped a torn last line of %d bytes in %s", len(raw) - len(whole), path)
    return whole


def _read_all(descriptor: int, path: Path) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > MAX_LEDGER_BYTES:
        raise LedgerError(f"{path} has {size} bytes, more than the {MAX_LEDGER_BYTES} this version reads")
    chunks: list[bytes] = []
    offset = 0
    while offset < size and (chunk := os.pread(descriptor, size - offset, offset)):
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
