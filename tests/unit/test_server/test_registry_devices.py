from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from simulators.server_home import MODEL, Clock, make_manifest, make_package, release

from delta_updates import Outcome, OutcomeReport
from server.errors import (
    ConflictError,
    CredentialRefusedError,
    EnrolmentRefusedError,
    ForbiddenError,
    NotFoundError,
)
from server.registry import DeviceRecord, OfferRecord, Registry

HOUR = timedelta(hours=1)


@pytest.fixture
def released(registry: Registry) -> Registry:
    registry.add_candidate(make_manifest())
    release(registry, 1)
    registry.add_candidate(make_manifest(kind="adapter", parent=1, adapter="b"))
    release(registry, 2, 1)
    return registry


def enrol(registry: Registry, name: str = "kitchen") -> tuple[DeviceRecord, str]:
    token, _ = registry.create_enrolment_token(MODEL, valid_for=HOUR)
    return registry.enrol(token, name=name)


def offer_v2(registry: Registry, device: DeviceRecord) -> OfferRecord:
    return registry.record_offer(device.device_id, model=MODEL, version=2, package_path=make_package(2, 1).path)


def outcome(offer: OfferRecord, what: Outcome, reason: str = "") -> OutcomeReport:
    return OutcomeReport(
        offer_id=offer.offer_id, version=offer.version, outcome=what, reason=reason, bytes_downloaded=5_000_000_000
    )


def test_a_token_enrols_one_device(released: Registry, clock: Clock) -> None:
    token, record = released.create_enrolment_token(MODEL, valid_for=HOUR)
    assert (record.expires_at, record.used_at) == (clock() + HOUR, None)
    device, credential = released.enrol(token, name="kitchen")
    assert (device.name, device.model, device.enrolled_at) == ("kitchen", MODEL, clock())
    assert released.authenticate(credential).device == device == released.device(device.device_id)
    (used,) = released.enrolment_tokens()
    assert (used.used_at, used.device_id) == (clock(), device.device_id)
    with pytest.raises(EnrolmentRefusedError):
        released.enrol(token, name="again")
    assert len(released.devices()) == 1


def test_a_token_expires(released: Registry, clock: Clock) -> None:
    token, _ = released.create_enrolment_token(MODEL, valid_for=HOUR)
    clock.advance(hours=1)
    with pytest.raises(EnrolmentRefusedError):
        released.enrol(token, name="late")
    with pytest.raises(EnrolmentRefusedError):
        released.enrol("guess", name="thief")


def test_a_token_needs_a_model_that_exists(released: Registry) -> None:
    with pytest.raises(NotFoundError, match="base import"):
        released.create_enrolment_token("other", valid_for=HOUR)


def test_of_many_who_use_a_token_at_once_one_is_enrolled(released: Registry) -> None:
    token, _ = released.create_enrolment_token(MODEL, valid_for=HOUR)

    def attempt(number: int) -> bool:
        try:
            released.enrol(token, name=f"device-{number}")
        except EnrolmentRefusedError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(attempt, range(6))) == 1
    assert len(released.devices()) == 1


def test_no_secret_is_stored(released: Registry) -> None:
    token, _ = released.create_enrolment_token(MODEL, valid_for=HOUR)
    _, credential = released.enrol(token, name="kitchen")
    with released._engine.connect() as connection:
        tables = ("SELECT * FROM devices", "SELECT * FROM enrolment_tokens")
        stored = repr([connection.exec_driver_sql(query).all() for query in tables])
    assert token not in stored
    assert credential.split(".")[1] not in stored


def test_a_credential_is_its_devices_own(released: Registry) -> None:
    (first, credential), (second, other) = enrol(released, "first"), enrol(released, "second")
    assert released.authenticate(credential).device.name == "first"
    for wrong in (
        credential[:-1] + ("A" if credential[-1] != "A" else "B"),
        f"{second.device_id}.{credential.split('.')[1]}",
        first.device_id,
        f"{'0' * 32}.{other.split('.')[1]}",
        "",
    ):
        with pytest.raises(CredentialRefusedError):
            released.authenticate(wrong)


def test_a_revoked_device_is_refused_for_good(released: Registry, clock: Clock) -> None:
    device, credential = enrol(released)
    revoked_at = clock()
    assert released.revoke_device(device.device_id).revoked_at == revoked_at
    clock.advance(hours=1)
    assert released.revoke_device(device.device_id).revoked_at == revoked_at
    with pytest.raises(ForbiddenError, match="revoked"):
        released.authenticate(credential)
    with pytest.raises(NotFoundError):
        released.revoke_device("0" * 32)


def test_devices_are_listed_in_pages(released: Registry) -> None:
    ids = sorted(enrol(released, f"device-{number}")[0].device_id for number in range(5))
    assert [device.device_id for device in released.devices()] == ids
    first = released.devices(model=MODEL, limit=2)
    rest = released.devices(after=first[-1].device_id)
    assert [device.device_id for device in (*first, *rest)] == ids
    assert released.devices(model="other") == ()
    assert [token.token_id for token in released.enrolment_tokens(after=1, limit=2)] == [2, 3]


def test_only_news_is_worth_a_write(released: Registry, clock: Clock) -> None:
    device, credential = enrol(released)
    assert device.is_news(None, None, None)  # it was never here
    released.record_check(device.device_id, installed_version=2, installed_hash="b" * 64, free_bytes=100)
    known = released.authenticate(credential).device
    assert (known.installed_version, known.installed_hash, known.last_seen_at) == (2, "b" * 64, clock())
    told = {(2, "b", 109): False, (2, "b", 89): True, (2, "b", None): True, (2, "c", 100): True, (3, "b", 100): True}
    for (version, letter, free_bytes), is_news in told.items():
        assert known.is_news(version, letter * 64, free_bytes) is is_news


def test_many_are_noted_at_once_and_each_at_most_every_few_minutes(released: Registry, clock: Clock) -> None:
    ids = [enrol(released, f"device-{number}")[0].device_id for number in range(3)]
    token = released.change_token()
    released.note_seen(ids[:2])
    first = clock()
    clock.advance(minutes=4)
    released.note_seen([*ids, "0" * 32])
    assert [released.device(one).last_seen_at for one in ids] == [first, first, clock()]
    clock.advance(minutes=1)
    released.note_seen(ids[:1])
    assert released.device(ids[0]).last_seen_at == clock()
    assert released.change_token() == token


def test_an_open_offer_is_made_again_and_a_finished_one_is_not(released: Registry) -> None:
    device, _ = enrol(released)
    offer = offer_v2(released, device)
    assert offer_v2(released, device) == offer
    released.record_outcome(device.device_id, outcome(offer, Outcome.DOWNLOADED))
    assert offer_v2(released, device) == offer
    released.record_outcome(device.device_id, outcome(offer, Outcome.REVERTED, "no answer\x00\nto the prompt"))
    assert offer_v2(released, device).offer_id != offer.offer_id
    assert len(released.offers(device.device_id)) == 2
    assert len(released.offers(device.device_id, limit=1)) == 1
    reports = {report.outcome: report for report in released.reports(device.device_id)}
    assert reports["reverted"].reason == "no answer  to the prompt"
    assert reports["downloaded"].bytes_downloaded == 5_000_000_000


def test_a_confirmed_offer_is_what_the_device_runs(released: Registry) -> None:
    device, _ = enrol(released)
    offer = offer_v2(released, device)
    released.record_outcome(device.device_id, outcome(offer, Outcome.CONFIRMED))
    now = released.device(device.device_id)
    assert (now.installed_version, now.installed_hash) == (2, released.version(MODEL, 2).manifest.tree_hash)


def test_a_late_report_takes_nothing_back(released: Registry) -> None:
    device, _ = enrol(released)
    offer = offer_v2(released, device)
    released.record_check(device.device_id, installed_version=3, installed_hash="c" * 64)
    released.record_outcome(device.device_id, outcome(offer, Outcome.CONFIRMED))
    assert released.device(device.device_id).installed_version == 3


def test_a_repeated_report_changes_nothing(released: Registry, clock: Clock) -> None:
    device, _ = enrol(released)
    offer = offer_v2(released, device)
    released.record_outcome(device.device_id, outcome(offer, Outcome.FAILED, "first"))
    reported = released.reports(device.device_id)
    clock.advance(hours=1)
    released.record_outcome(device.device_id, outcome(offer, Outcome.FAILED, "second"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: released.record_outcome(device.device_id, outcome(offer, Outcome.APPLIED)), range(4)))
    assert [report for report in released.reports(device.device_id) if report.outcome == "failed"] == list(reported)
    assert len(released.reports(device.device_id)) == 2


def test_a_device_reports_only_about_its_own_offers(released: Registry) -> None:
    (mine, _), (theirs, _) = enrol(released, "mine"), enrol(released, "theirs")
    offer = offer_v2(released, theirs)
    with pytest.raises(NotFoundError, match="no offer"):
        released.record_outcome(mine.device_id, outcome(offer, Outcome.CONFIRMED))
    with pytest.raises(ConflictError, match="was about v2, not v1"):
        released.record_outcome(theirs.device_id, outcome(offer, Outcome.CONFIRMED).model_copy(update={"version": 1}))
    assert released.reports(theirs.device_id) == ()
