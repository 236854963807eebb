"""The ledger: durable, append-only, suspicious."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from privacy import JsonlLedger, LedgerError, PrivacyEvent
from privacy.chain import FIRST_HEAD, event_line, head_after, parse_chain

if TYPE_CHECKING:
    from pathlib import Path


def make_event(**changes: object) -> PrivacyEvent:
    values: dict[str, Any] = {
        "run_id": "run-1",
        "server_round": 1,
        "device_id": "device-1",
        "noise_multiplier": 1.0,
        "sampling_probability": 0.1,
        "steps": 10,
        "clipping_norm": 1.0,
        "target_delta": 1e-5,
        "recorded_at": datetime(2026, 3, 1, 12, tzinfo=UTC),
    }
    return PrivacyEvent.model_validate({**values, **changes})


def append_some(path: Path, count: int) -> None:
    for _ in range(count):
        JsonlLedger(path).append(make_event())


def lines_of(*events: PrivacyEvent) -> tuple[bytes, ...]:
    lines, head = [], FIRST_HEAD
    for event in events:
        lines.append(event_line(event, previous=head))
        head = head_after(head, lines[-1])
    return tuple(lines)


def old_line(event: PrivacyEvent) -> bytes:
    """A line as the first releases wrote it."""
    return json.dumps({"event": event.model_dump(mode="json", exclude_none=True), "format": 1}).encode() + b"\n"


def test_events_come_back_in_order_and_by_device(tmp_path: Path) -> None:
    ledger = JsonlLedger(tmp_path / "deep" / "ledger.jsonl")
    assert ledger.events() == ()
    events = tuple(make_event(server_round=n, device_id=f"device-{n % 2}") for n in range(5))
    for event in events:
        ledger.append(event)
    assert ledger.events() == events
    assert JsonlLedger(ledger.path).events(device_id="device-1") == events[1::2]


def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    append_some(tmp_path / "ledger.jsonl", 1)
    assert stat.S_IMODE((tmp_path / "ledger.jsonl").stat().st_mode) == 0o600


def test_an_event_is_recorded_once(tmp_path: Path) -> None:
    ledger, event = JsonlLedger(tmp_path / "ledger.jsonl"), make_event()
    ledger.append(event)
    with pytest.raises(LedgerError, match=event.event_id):
        ledger.append(event)
    assert ledger.events() == (event,)


def test_a_line_torn_at_any_byte_is_dropped_and_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, torn, last = make_event(), make_event(), make_event()
    start, line = lines_of(first, torn)
    for cut in range(1, len(line)):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(start + line[:cut])
        caplog.clear()
        assert JsonlLedger(path).events() == (first,)
        assert "torn" in caplog.text
        JsonlLedger(path).append(last)
        assert path.read_bytes() == b"".join(lines_of(first, last))


def changed(event: PrivacyEvent, **changes: object) -> bytes:
    envelope = json.loads(old_line(event))
    envelope["event"].update(changes)
    return json.dumps(envelope).encode() + b"\n"


@pytest.mark.parametrize(
    "bad",
    [
        b"\n",
        b"not json\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b"{}\n",
        b'{"event": {}, "format": 2}\n',
        b'{"event": {}, "format": 3, "previous": ""}\n',
        b'{"event": {}, "format": 1}\n',
        changed(make_event(), surprise=1),
        changed(make_event(), mechanism="laplace"),
        changed(make_event(), steps=-1),
        changed(make_event(), recorded_at="2026-03-01T12:00:00"),
        changed(make_event(), run_id="x" * 10_000),
        b"[" * 5000 + b"\n",
    ],
)
def test_any_other_bad_line_is_an_error_and_stays(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(old_line(make_event()) + bad + old_line(make_event()))
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="line 2"):
        JsonlLedger(path).events()
    with pytest.raises(LedgerError, match="line 2"):
        JsonlLedger(path).append(make_event())
    assert path.read_bytes() == before


def test_a_repeated_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(old_line(make_event(event_id="1" * 32)) * 2)
    with pytest.raises(LedgerError, match="twice"):
        JsonlLedger(path).events()


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with path.open("wb") as file:
        file.truncate(300 * 1024 * 1024)
    with pytest.raises(LedgerError, match="more than"):
        JsonlLedger(path).events()


def test_a_folder_in_its_place_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot open the ledger"):
        JsonlLedger(tmp_path).append(make_event())


def test_threads_and_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append_some, [path] * 4, [10] * 4))
    context = get_context("fork")
    processes = [context.Process(target=append_some, args=(path, 10)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(JsonlLedger(path).events()) == 60


def test_lines_are_the_same_bytes_whatever_the_time_zone() -> None:
    here = datetime(2026, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    event = make_event(event_id="2" * 32)
    assert lines_of(make_event(event_id="2" * 32, recorded_at=here)) == lines_of(event)
    assert PrivacyEvent.model_validate_json(event.model_dump_json()) == event


def test_events_are_frozen_and_closed() -> None:
    event = make_event()
    with pytest.raises(ValidationError):
        event.steps = 1
    with pytest.raises(ValidationError):
        make_event(surprise=1)
    assert make_event().event_id != make_event().event_id


@pytest.mark.parametrize("number_of_old_lines", [0, 2, 4])
def test_a_removed_moved_changed_or_put_in_line_is_found(tmp_path: Path, number_of_old_lines: int) -> None:
    ledger = JsonlLedger(tmp_path / "ledger.jsonl")
    ledger.path.write_bytes(b"".join(old_line(make_event()) for _ in range(number_of_old_lines)))
    for steps in range(1, 5):
        ledger.append(make_event(steps=steps))
    assert len(ledger.events()) == number_of_old_lines + 4
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    for at in range(len(lines) - 1):
        faults = {
            "removed": lines[:at] + lines[at + 1 :],
            "moved": [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
            "changed": [*lines[:at], lines[at].replace(b'"clipping_norm"', b'"clipping_norm" '), *lines[at + 1 :]],
            "put in": [*lines[:at], old_line(make_event()), *lines[at:]],
        }
        for fault, instead in faults.items():
            ledger.path.write_bytes(b"".join(instead))
            with pytest.raises(LedgerError, match=r"does not follow|a line of format 1 after"):
                ledger.events()
            assert ledger.path.read_bytes() == b"".join(instead), fault


def test_a_cut_end_shows_against_a_head_from_before() -> None:
    events = tuple(make_event() for _ in range(3))
    raw = b"".join(lines_of(*events))
    _, heads = parse_chain(raw, "ledger")
    cut = b"".join(lines_of(*events[:2]))
    assert heads[-1] not in parse_chain(cut, "ledger")[1]
    assert heads[:2] == parse_chain(cut, "ledger")[1]
