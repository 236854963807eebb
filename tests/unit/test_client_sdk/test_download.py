"""Downloads from a service with bad manners."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulators.fake_clock import FakeClock
from simulators.faulty_disk import FaultyDisk
from simulators.update_service import FakeUpdateService, Fault
from urllib3 import HTTPResponse

from client_sdk.disk import LocalDisk
from client_sdk.download import HttpFetcher
from client_sdk.errors import DeviceDiskError, PackageError, ServiceRefusedError, ServiceUnavailableError
from client_sdk.pace import Limits
from client_sdk.responses import raise_for_status
from client_sdk.transport import Transport

PATH = "packages/tiny/1/full.lmpkg"
RAW = bytes(range(256)) * 800
SHA256 = hashlib.sha256(RAW).hexdigest()


@pytest.fixture
def serving(service: FakeUpdateService) -> FakeUpdateService:
    service.add_target(PATH, RAW, {})
    return service


def fetch(
    service: FakeUpdateService,
    folder: Path,
    *,
    clock: FakeClock | None = None,
    disk: FaultyDisk | None = None,
    limits: Limits | None = None,
    seen: list[tuple[int, int]] | None = None,
) -> int:
    transport = Transport(service.address, clock=clock or FakeClock(), limits=limits or Limits(attempts=3))
    progress = seen if seen is not None else []
    return HttpFetcher(transport, disk or LocalDisk()).fetch(
        PATH, folder / "package", length=len(RAW), sha256=SHA256, on_progress=lambda *step: progress.append(step)
    )


def test_a_clean_download(serving: FakeUpdateService, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert fetch(serving, tmp_path, seen=seen) == len(RAW)
    assert (tmp_path / "package").read_bytes() == RAW
    assert seen[0] == (0, len(RAW))
    assert seen[-1] == (len(RAW), len(RAW))
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package", "service"]


def test_what_is_here_already_is_not_fetched_again(serving: FakeUpdateService, tmp_path: Path) -> None:
    fetch(serving, tmp_path)
    assert fetch(serving, tmp_path) == 0
    assert len(serving.package_requests()) == 1


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(RAW) - 1), max_size=3))
def test_a_transfer_cut_anywhere_is_continued(serving: FakeUpdateService, tmp_path: Path, cuts: list[int]) -> None:
    (tmp_path / "package").unlink(missing_ok=True)
    serving.faults[:] = [Fault(cut_after=cut) for cut in cuts]
    # The part continues where it was cut, so no byte travels twice.
    assert fetch(serving, tmp_path, limits=Limits(attempts=9)) == len(RAW)
    assert (tmp_path / "package").read_bytes() == RAW


@pytest.mark.parametrize("cut", [0, 1, 65_535, 65_536, 65_537, len(RAW) - 1])
def test_the_next_process_continues(serving: FakeUpdateService, tmp_path: Path, cut: int) -> None:
    serving.faults[:] = [Fault(cut_after=cut), *[Fault(status=503)] * 3]
    with pytest.raises(ServiceUnavailableError, match="503"):
        fetch(serving, tmp_path)
    assert fetch(serving, tmp_path) == len(RAW) - cut
    headers = serving.package_requests()[-1]
    assert headers.get("Range") == (f"bytes={cut}-" if cut else None)
    if cut:
        assert headers["If-Range"] == f'"{SHA256}"'


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ignores_range=True),
        Fault(status=416),
        Fault(content_range="bytes 0-204799/204800"),
        Fault(content_range=f"bytes 1000-{len(RAW) - 2}/{len(RAW)}"),
        Fault(content_range=f"bytes 1000-{len(RAW) - 1}/{len(RAW) + 1}"),
        Fault(content_range="bytes */204800"),
        Fault(content_range="potatoes 1-2/3"),
        Fault(headers={"ETag": '"other bytes"'}),
    ],
)
def test_a_resume_that_cannot_be_trusted_starts_over(serving: FakeUpdateService, tmp_path: Path, fault: Fault) -> None:
    serving.faults[:] = [Fault(cut_after=1000), fault]
    assert fetch(serving, tmp_path) == len(RAW) + 1000
    assert (tmp_path / "package").read_bytes() == RAW


def test_a_file_that_changed_between_two_processes_starts_over(serving: FakeUpdateService, tmp_path: Path) -> None:
    (tmp_path / "package.part").write_bytes(b"x" * 500)
    (tmp_path / "package.etag").write_text('"of-another-file"')
    assert fetch(serving, tmp_path) == len(RAW)


@pytest.mark.parametrize("etag", [b"", bytes(66), b'"half', b'"a\nb"', b"\xff" * 40, b'"' + b"x" * 300 + b'"'])
def test_an_etag_that_a_power_cut_spoilt_is_not_sent(serving: FakeUpdateService, tmp_path: Path, etag: bytes) -> None:
    (tmp_path / "package.part").write_bytes(RAW[:500])
    (tmp_path / "package.etag").write_bytes(etag)
    assert fetch(serving, tmp_path) == len(RAW) - 500
    assert "if-range" not in {name.lower() for name in serving.package_requests()[0]}


def test_a_damaged_part_is_dropped_and_fetched_once_more(serving: FakeUpdateService, tmp_path: Path) -> None:
    (tmp_path / "package.part").write_bytes(b"x" * 500)
    assert fetch(serving, tmp_path) == len(RAW) - 500 + len(RAW)
    assert (tmp_path / "package").read_bytes() == RAW


def test_a_part_longer_than_what_is_signed_is_dropped(serving: FakeUpdateService, tmp_path: Path) -> None:
    (tmp_path / "package.part").write_bytes(b"x" * (len(RAW) + 1))
    assert fetch(serving, tmp_path) == len(RAW)


def test_wrong_bytes_are_deleted_and_not_fetched_again(serving: FakeUpdateService, tmp_path: Path) -> None:
    serving.faults[:] = [Fault(corrupt_at=77)]
    with pytest.raises(PackageError, match="signed sha256"):
        fetch(serving, tmp_path)
    assert len(serving.package_requests()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["service"]


@pytest.mark.parametrize(
    "fault", [Fault(extra=b"!"), Fault(extra=b"!" * 100_000), Fault(headers={"Content-Encoding": "gzip"})]
)
def test_more_or_other_bytes_than_signed_are_refused(serving: FakeUpdateService, tmp_path: Path, fault: Fault) -> None:
    serving.faults[:] = [fault]
    with pytest.raises(PackageError):
        fetch(serving, tmp_path)


def test_an_endless_resume_stops_at_the_signed_length(serving: FakeUpdateService, tmp_path: Path) -> None:
    serving.faults[:] = [Fault(cut_after=1000), Fault(extra=b"!" * 100_000)]
    with pytest.raises(PackageError, match="more than the signed"):
        fetch(serving, tmp_path)
    assert not (tmp_path / "package.part").exists()


def test_a_missing_package_is_not_asked_for_again_and_again(serving: FakeUpdateService, tmp_path: Path) -> None:
    serving.faults[:] = [Fault(status=404)] * 9
    with pytest.raises(ServiceRefusedError, match="404"):
        fetch(serving, tmp_path)
    assert len(serving.package_requests()) == 1


def test_a_storm_of_errors_ends_with_growing_waits(serving: FakeUpdateService, tmp_path: Path) -> None:
    clock = FakeClock()
    serving.faults[:] = [Fault(status=500), Fault(status=503, headers={"Retry-After": "7"}), Fault(status=502)]
    with pytest.raises(ServiceUnavailableError, match="502"):
        fetch(serving, tmp_path, clock=clock)
    assert len(clock.sleeps) == 2
    assert clock.sleeps[1] >= 7


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("120", 120),
        ("9" * 30, 86_400),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 86_400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
def test_the_wait_that_a_server_asks_for_is_read_in_both_forms(asked: str, seconds: float | None) -> None:
    found = HTTPResponse(headers={"Retry-After": asked}, status=503)
    with pytest.raises(ServiceUnavailableError) as caught:
        raise_for_status(found, "http://service", FakeClock(), Limits())
    assert caught.value.retry_after_s == seconds


def test_a_redirect_is_refused(serving: FakeUpdateService, tmp_path: Path) -> None:
    serving.faults[:] = [Fault(status=302, headers={"Location": "http://127.0.0.1:1/elsewhere"})]
    with pytest.raises(ServiceRefusedError, match="redirects are refused"):
        fetch(serving, tmp_path)


def test_a_trickle_is_cut_and_the_deadline_ends_it(serving: FakeUpdateService, tmp_path: Path) -> None:
    # Every look at the clock costs 40 s: 64 KiB per look are far below 10 kB/s.
    slow = Limits(attempts=3, min_rate_bytes_per_s=10_000.0, rate_window_s=30.0, download_deadline_s=600.0)
    with pytest.raises(ServiceUnavailableError, match=r"too slow|longer than 600 s"):
        fetch(serving, tmp_path, clock=FakeClock(seconds_per_look=200.0), limits=slow)
    assert (tmp_path / "package.part").stat().st_size > 0


@pytest.mark.parametrize("space", [0, 1, 100_000, len(RAW) - 1])
def test_a_full_disk_keeps_what_arrived(serving: FakeUpdateService, tmp_path: Path, space: int) -> None:
    with pytest.raises(DeviceDiskError, match=r"became full.*continues where it stopped"):
        fetch(serving, tmp_path, disk=FaultyDisk(tmp_path / "stash", space_bytes=space))
    # Some of the room went to the ETag.
    assert len(RAW) - space <= fetch(serving, tmp_path) <= len(RAW) - max(0, space - 100)
