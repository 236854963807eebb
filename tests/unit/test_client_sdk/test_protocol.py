"""A device of now at a service of the release before: its words are understood there, and it asks for no others."""

from collections.abc import Callable
from pathlib import Path

import pytest
from simulators import protocol_1
from simulators.update_service import CREDENTIAL, TOKEN, FakeUpdateService
from simulators.versions import write_tree

from client_sdk import Device
from client_sdk.health import HealthFacts
from delta_updates import (
    PROTOCOL,
    PROTOCOL_HEADER,
    EnrolReply,
    EnrolRequest,
    Offer,
    Outcome,
    OutcomeReport,
    Quality,
    UpdateQuery,
)
from delta_updates.offer import ChainStep, KeyRequest, PackageRef, last_format, protocol_of
from delta_updates.package import FORMAT_VERSION

OpenDevice = Callable[..., Device]


def test_an_update_in_the_words_of_protocol_1(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    # The old service refuses what it does not know, and so do its messages here.
    device = open_device()
    device.update()
    service.publish(write_tree(tmp_path / "v2", base_seed=1, adapter_seed=2), version=2, deltas_from=(1,))
    old = protocol_1.Offer.model_validate(service.offer(2, source=1).model_dump(exclude={"chain"}))
    service.answers[:] = [old.model_dump_json().encode()]
    assert device.update().to_version == 2
    assert (
        protocol_1.EnrolRequest(token=TOKEN, name="kitchen").model_dump()
        == EnrolRequest(token=TOKEN, name="kitchen").model_dump()
    )
    EnrolReply.model_validate(protocol_1.EnrolReply(device_id="device-1", credential=CREDENTIAL).model_dump())
    protocol_1.EnrolmentFile.model_validate_json((tmp_path / "enrolment.json").read_bytes())
    for query in service.queries:
        protocol_1.UpdateQuery.model_validate_json(query.model_dump_json())
    assert len(service.reports) == 6
    for report in service.report_bodies:
        protocol_1.OutcomeReport.model_validate_json(report)
    # The device says what it speaks with every request; whoever does not know the header ignores it.
    assert {headers[PROTOCOL_HEADER] for _, _, headers in service.requests} == {str(PROTOCOL)}


def test_quality_goes_to_a_service_that_knows_it_when_the_owner_agreed(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    measured = HealthFacts(tokens_per_second=12.5, peak_memory_bytes=400_000_000)
    device = open_device(test_version=lambda _tree, _manifest: measured)
    for number, (protocol, file, told) in enumerate(
        [
            (None, "[reports]\nshare_speed = true\n", None),
            (2, "[reports]\nshare_speed = true\n", None),
            (PROTOCOL, "", None),
            (PROTOCOL, "[reports]\nshare_speed = true\n", Quality(tokens_per_second=12.5, memory_bytes=400_000_000)),
        ],
        start=2,
    ):
        service.publish(write_tree(tmp_path / f"v{number}", adapter_seed=number), version=number)
        service.protocol = protocol
        (tmp_path / "home" / "device.toml").write_text(file)
        device.update()
        assert service.reports[-1].outcome == Outcome.CONFIRMED
        assert service.reports[-1].quality == told
        assert (b"quality" in service.report_bodies[-1]) is (told is not None)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(UpdateQuery, protocol_1.UpdateQuery), (EnrolRequest, protocol_1.EnrolRequest)],
)
def test_what_a_device_sends_has_no_words_that_protocol_1_lacks(ours: type, theirs: type) -> None:
    assert set(ours.model_fields) == set(theirs.model_fields)  # type: ignore[attr-defined]


def test_a_report_has_the_words_of_the_service_that_it_goes_to() -> None:
    report = OutcomeReport(offer_id="o-1", version=2, outcome=Outcome.CONFIRMED, quality=Quality(loss_increase=0.25))
    for protocol in (1, 2):
        old = report.in_protocol(protocol)
        protocol_1.OutcomeReport.model_validate(old)
    assert OutcomeReport.model_validate(report.in_protocol(3)) == report
    # Nothing to say is said in the words of the oldest.
    protocol_1.OutcomeReport.model_validate(report.model_copy(update={"quality": None}).in_protocol(3))


def test_a_decline_is_a_failure_to_a_service_that_has_no_word_for_it() -> None:
    report = OutcomeReport(offer_id="o-1", version=2, outcome=Outcome.DECLINED, reason="ε is above 2")
    for protocol in (1, 4):
        told = protocol_1.OutcomeReport.model_validate(report.in_protocol(protocol))
        assert (told.outcome, told.reason) == ("failed", "ε is above 2")
    assert OutcomeReport.model_validate(report.in_protocol(5)) == report


def test_an_offer_in_protocol_1_is_what_protocol_1_reads(service: FakeUpdateService, v1: Path) -> None:
    offer = service.offer(1)
    protocol_1.Offer.model_validate(offer.in_protocol(1))
    assert Offer.model_validate(offer.in_protocol(2)) == offer


_PACKAGE = {"path", "length", "sha256", "source_version"}
_OFFER = {"offer_id", "model", "version", "tree_hash", "manifest_path", "package"}
_REPORT = {"offer_id", "version", "outcome", "reason", "bytes_downloaded", "apply_seconds"}
_QUERY = {"model", "installed_version", "installed_hash", "only_full"}
# What each protocol says, and the newest package format that its devices read. A line is never changed: devices in the
# field cannot be changed either. Who adds a field or a format adds a line.
_PROTOCOLS = {
    1: (_OFFER, _REPORT, {"downloaded", "applied", "confirmed", "reverted", "failed"}, 3),
    2: (_OFFER | {"chain"}, _REPORT, {"downloaded", "applied", "confirmed", "reverted", "failed"}, 3),
    3: (_OFFER | {"chain"}, _REPORT | {"quality"}, {"downloaded", "applied", "confirmed", "reverted", "failed"}, 3),
    4: (
        _OFFER | {"chain"},
        _REPORT | {"quality"},
        {"downloaded", "applied", "tested", "confirmed", "reverted", "failed"},
        4,
    ),
    5: (
        _OFFER | {"chain"},
        _REPORT | {"quality"},
        {"downloaded", "applied", "tested", "confirmed", "reverted", "failed", "declined"},
        4,
    ),
    6: (
        _OFFER | {"chain"},
        _REPORT | {"quality"},
        {"downloaded", "applied", "tested", "confirmed", "reverted", "failed", "declined"},
        5,
    ),
}


@pytest.mark.parametrize("protocol", _PROTOCOLS)
def test_each_protocol_says_what_it_has_always_said(protocol: int, service: FakeUpdateService, v1: Path) -> None:
    offer, report, outcomes, newest = _PROTOCOLS[protocol]
    assert set(service.offer(1).in_protocol(protocol)) == offer
    made = [
        OutcomeReport(offer_id="o-1", version=2, outcome=outcome, quality=Quality(loss_increase=0.25))
        for outcome in Outcome
    ]
    sent = [one.in_protocol(protocol) for one in made if one.is_known_in(protocol)]
    assert all(set(one) == report for one in sent)
    assert {one["outcome"] for one in sent} == outcomes
    assert last_format(protocol) == newest


def test_the_newest_protocol_is_in_the_table_with_all_its_words() -> None:
    assert max(_PROTOCOLS) == PROTOCOL
    assert _PROTOCOLS[PROTOCOL][3] == FORMAT_VERSION
    assert set(UpdateQuery.model_fields) == _QUERY
    assert set(PackageRef.model_fields) == _PACKAGE
    assert set(ChainStep.model_fields) == {"version", "tree_hash", "manifest_path", "package"}
    assert set(EnrolRequest.model_fields) == {"token", "name"}
    assert set(EnrolReply.model_fields) == {"device_id", "credential"}
    assert set(KeyRequest.model_fields) == {"public_key", "proof"}


@pytest.mark.parametrize(
    ("header", "protocol"),
    [
        (None, 1),
        ("", 1),
        ("1", 1),
        ("2", 2),
        ("3", 3),
        ("4", 4),
        ("5", 5),
        ("6", 6),
        ("7", 6),
        ("99999", 1),
        ("-1", 1),
        ("two", 1),
        ("²", 1),
        ("0", 1),
    ],
)
def test_the_older_of_the_two_decides(header: str | None, protocol: int) -> None:
    assert protocol_of(header) == protocol
