"""What happened to people's data, kept append-only; what it cost is the accountant's business."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from privacy.chain import FIRST_HEAD, event_line, parse_chain
from privacy.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from privacy.event import PrivacyEvent

_log = logging.getLogger(__name__)

MAX_LEDGER_BYTES = 256 * 1024 * 1024


class PrivacyLedger(Protocol):
    """An append-only record of privacy events; a file here, a database table in the server."""

    def append(self, event: PrivacyEvent) -> None:
        """Record `event` durably. When this returns, a power cut no longer loses it."""

    def events(self, *, device_id: str | None = None) -> tuple[PrivacyEvent, ...]:
        """Every event in the order of recording, or those of one device."""


class JsonlLedger:
    """A ledger in one file of JSON lines, readable by its owner only, safe with several writers at once.

    Its lines are chained (`privacy.chain`): one that was changed, removed or moved is found by the next reading.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: PrivacyEvent) -> None:
        """Write `event` and flush it to the disk before returning.

        Raises:
            LedgerError: the event is already there, or the file cannot be trusted or written.
        """
        with self._locked(write=True) as descriptor:
            raw = _read_all(descriptor, self.path)
            whole = _whole_lines(raw, self.path)
            events, heads = parse_chain(whole, str(self.path))
            if any(known.event_id == event.event_id for known in events):
                raise LedgerError(f"event {event.event_id} is already in {self.path}; an event is recorded once")
            if len(whole) < len(raw):
                # The torn line was never acknowledged, so nothing was released on its account.
                os.ftruncate(descriptor, len(whole))
            _write_all(descriptor, event_line(event, previous=heads[-1] if heads else FIRST_HEAD))
            os.fsync(descriptor)

    def events(self, *, device_id: str | None = None) -> tuple[PrivacyEvent, ...]:
        """Every event in the order of recording, or those of one device; none when the file does not exist yet.

        Raises:
            LedgerError: a line other than a torn last one is not a valid event, or an event is there twice.
        """
        events, _ = self._read()
        return tuple(event for event in events if device_id is None or event.device_id == device_id)

    def heads(self) -> tuple[str, ...]:
        """The head of the chain after each event; the last one stands for the whole ledger.

        Raises:
            LedgerError: as `events`.
        """
        return self._read()[1]

    def _read(self) -> tuple[tuple[PrivacyEvent, ...], tuple[str, ...]]:
        if not self.path.exists():
            return (), ()
        with self._locked(write=False) as descriptor:
            whole = _whole_lines(_read_all(descriptor, self.path), self.path)
        return parse_chain(whole, str(self.path))

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
