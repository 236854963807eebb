"""The whole update over loopback HTTP, and everything that must not happen in it."""

import contextlib
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from simulators.faulty_disk import FaultyDisk
from simulators.mirror import mirror_of
from simulators.network import Network, Weather
from simulators.update_service import CREDENTIAL, FakeUpdateService, Fault
from simulators.versions import write_tree

from client_sdk import (
    Conditions,
    ConfigurationError,
    Device,
    DeviceDiskError,
    EnrolmentError,
    MetadataError,
    MissingExtraError,
    OfferRefusedError,
    PackageError,
    RefusedError,
    RetryLaterError,
    SelfTestError,
    ServiceUnavailableError,
    UpdateInProgressError,
    UpdateResult,
)
from client_sdk.disk import LocalDisk
from client_sdk.download import MirroredFetcher
from client_sdk.lock import update_lock
from client_sdk.offers import VerifiedOffer
from client_sdk.slot_filler import SlotFiller
from client_sdk.slots import MAX_BOOTS
from client_sdk.state import StateFile
from delta_updates import ROOM_HEADER, ChainStep, Offer, VersionManifest, verify_tree

OpenDevice = Callable[..., Device]


class Crash(BaseException):
    """The process ends in the middle of a self-test."""


def v2_with_delta(service: FakeUpdateService, tmp_path: Path) -> Path:
    tree = write_tree(tmp_path / "v2", base_seed=1, adapter_seed=2)
    service.publish(tree, version=2, deltas_from=(1,))
    return tree


def broken(_tree: Path, _manifest: VersionManifest) -> None:
    raise SelfTestError("the logits are not finite")


def crashing(_tree: Path, _manifest: VersionManifest) -> None:
    raise Crash


# --- the good way


def test_full_then_delta_then_nothing_new(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device: Device = open_device()
    seen: list[tuple[int, int]] = []
    first = device.update(on_progress=lambda *step: seen.append(step))
    assert (first.decision, first.from_version, first.to_version, first.package) == ("confirmed", None, 1, "full")
    assert seen[-1] == (first.package_bytes, first.package_bytes)
    v2 = v2_with_delta(service, tmp_path)
    offer = device.check()
    assert offer is not None
    assert (offer.version, offer.package.source_version) == (2, 1)
    second = open_device().update()
    assert (second.decision, second.from_version, second.to_version, second.package) == ("confirmed", 1, 2, "delta")
    assert second.bytes_downloaded == second.package_bytes == service.published[2].packages[1].length
    active = device.active()
    verify_tree(active.tree, active.manifest.files)
    assert active.manifest.tree_hash == service.published[2].tree_hash
    assert (active.tree / "base/model.safetensors").read_bytes() == (v2 / "base/model.safetensors").read_bytes()
    assert device.update().decision == "up_to_date"
    assert device.check() is None
    assert service.outcomes() == [(v, o) for v in (1, 2) for o in ("downloaded", "applied", "confirmed")]
    assert list((tmp_path / "home" / "downloads").iterdir()) == []


def test_a_service_that_has_the_word_is_told_that_the_self_test_passed(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    service.protocol = 4
    open_device().update()
    assert service.outcomes() == [(1, o) for o in ("downloaded", "applied", "tested", "confirmed")]


def test_nothing_is_offered_to_an_empty_device(service: FakeUpdateService, open_device: OpenDevice) -> None:
    result = open_device().update()
    assert (result.decision, result.to_version) == ("up_to_date", None)
    assert open_device().status().last_decision == "nothing is offered yet"


def test_versions_may_be_skipped(service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice) -> None:
    open_device().update()
    service.publish(write_tree(tmp_path / "v5", base_seed=5), version=5)
    assert open_device().update().to_version == 5


# --- bad packages


def test_a_bad_delta_gets_one_try_at_the_full_package(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    v2_with_delta(service, tmp_path)
    service.faults[:] = [Fault(corrupt_at=50)]
    result = open_device().update()
    assert (result.decision, result.to_version, result.package) == ("confirmed", 2, "full")
    assert "signed sha256" in result.reason
    assert service.queries[-1].only_full
    assert service.outcomes()[3:] == [(2, "failed"), (2, "downloaded"), (2, "applied"), (2, "confirmed")]


def test_bit_rot_in_the_source_is_found_before_it_matters(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device: Device = open_device()
    device.update()
    weights = device.active().tree / "base/model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    v2_with_delta(service, tmp_path)
    result = device.update()
    assert (result.decision, result.package) == ("confirmed", "full")
    verify_tree(device.active().tree, device.active().manifest.files)


def test_a_bad_full_package_leaves_the_old_version(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    v2_with_delta(service, tmp_path)
    service.faults[:] = [Fault(corrupt_at=50), Fault(corrupt_at=60)]
    with pytest.raises(PackageError):
        open_device().update()
    assert open_device().active().manifest.version == 1
    assert service.outcomes()[3:] == [(2, "failed"), (2, "failed")]
    # Nothing of it is held against the version: the next package may be whole.
    assert open_device().update().to_version == 2


def test_a_signed_package_that_makes_another_tree_is_refused(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    other = write_tree(tmp_path / "other", base_seed=9)
    service.publish(other, version=2)
    full = service.published[2].packages[None]
    service.files[full.path] = service.files["packages/tiny/1/full.lmpkg"]
    service.add_target(full.path, service.files[full.path], {})
    service.sign()
    raw = service.published[1].packages[None]
    service.published[2].packages[None] = full.model_copy(update={"length": raw.length, "sha256": raw.sha256})
    with pytest.raises(PackageError, match="cannot be applied"):
        open_device().update()


def test_a_cut_download_continues_in_the_next_process(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    length = service.published[1].packages[None].length
    service.faults[:] = [Fault(cut_after=1000), *[Fault(status=503)] * 3]
    with pytest.raises(ServiceUnavailableError):
        open_device().update()
    assert open_device().update().bytes_downloaded == length - 1000


# --- bad offers and bad metadata


def test_a_replayed_old_offer_is_refused_and_reported_once(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    v2_with_delta(service, tmp_path)
    open_device().update()
    service.answers[:] = [service.offer(1), service.offer(1)]
    for _ in range(2):
        with pytest.raises(OfferRefusedError, match="older than v2"):
            open_device().check()
    assert open_device().active().manifest.version == 2
    open_device().update()
    assert service.outcomes()[3:] == [(1, "failed")]


@pytest.mark.parametrize("lost", ["slots", "slots/active.json", "trust/timestamp.json", "trust/root_history"])
def test_losing_local_files_does_not_open_the_door_to_old_versions(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, lost: str
) -> None:
    old_metadata = dict(service.metadata)
    v2_with_delta(service, tmp_path)
    open_device().update()
    path = tmp_path / "home" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    good_metadata, service.metadata = service.metadata, old_metadata
    service.answers[:] = [service.offer(1)]
    with pytest.raises((OfferRefusedError, MetadataError)):
        open_device().update()
    # The lost version itself comes back, once the service says the truth again.
    service.metadata = good_metadata
    open_device().update()
    assert open_device().active().manifest.version == 2


def test_the_counter_survives_a_new_enrolment(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    v2_with_delta(service, tmp_path)
    open_device().update()
    (tmp_path / "home" / "state.json").unlink()
    device: Device = open_device()
    assert device.status().highest_version == 2
    service.answers[:] = [service.offer(1)]
    with pytest.raises(OfferRefusedError, match="older than v2"):
        device.update()


def test_an_offer_that_lies_about_the_package_is_refused(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    def longer(offer: Offer) -> Offer:
        return offer.model_copy(update={"package": offer.package.model_copy(update={"length": 10**12})})

    service.on_offer = longer
    with pytest.raises(OfferRefusedError, match="package length"):
        open_device().check()
    assert service.package_requests() == []


def test_an_unsigned_package_is_refused(service: FakeUpdateService, v1: Path, open_device: OpenDevice) -> None:
    def unsigned(offer: Offer) -> Offer:
        ref = offer.package.model_copy(update={"path": "packages/tiny/1/other.lmpkg"})
        return offer.model_copy(update={"package": ref})

    service.on_offer = unsigned
    with pytest.raises(MetadataError, match="not among the files"):
        open_device().check()


def test_a_manifest_that_is_not_the_signed_one_is_refused(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    path = "manifests/tiny/1.json"
    service.files[path] = service.files[path].replace(b'"version":1', b'"version":2')
    with pytest.raises(MetadataError, match="not what was signed"):
        open_device().check()


@pytest.mark.parametrize("answer", [b"{}", b"not json", b"\xff" * 100, b"{" * 70_000])
def test_an_answer_that_is_no_offer_is_refused(
    service: FakeUpdateService, open_device: OpenDevice, answer: bytes
) -> None:
    service.answers[:] = [answer]
    with pytest.raises(Exception, match=r"not a valid Offer|larger than"):
        open_device().check()


def test_rolled_back_metadata_is_refused(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    old = dict(service.metadata)
    v2_with_delta(service, tmp_path)
    device: Device = open_device()
    assert device.check() is not None
    service.metadata = old
    with pytest.raises(MetadataError, match="does not verify"):
        device.check()


def test_expired_metadata_is_refused(service: FakeUpdateService, v1: Path, open_device: OpenDevice) -> None:
    service.sign(expires=datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1))
    with pytest.raises(MetadataError, match=r"expired.*clock"):
        open_device().check()


def test_a_device_that_is_kept_from_news_notices(service: FakeUpdateService, v1: Path, open_device: OpenDevice) -> None:
    open_device().update()
    service.sign(expires=datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1))
    with pytest.raises(MetadataError, match="expired"):
        open_device().update()
    assert open_device().active().manifest.version == 1


def test_metadata_signed_by_a_stranger_is_refused(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device: Device = open_device()
    stranger = FakeUpdateService(tmp_path / "stranger")
    stranger.publish(v1, version=1)
    service.metadata = stranger.metadata
    with pytest.raises(MetadataError, match="does not verify"):
        device.check()


def test_rotated_keys_are_followed(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    for role in ("timestamp", "targets", "root"):
        service.rotate(role)
    service.sign()
    v2_with_delta(service, tmp_path)
    assert open_device().update().to_version == 2


def test_a_fast_forwarded_timestamp_is_recovered_from_by_rotating_its_key(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    service.trust.timestamp.version = 10**6
    service.sign()
    open_device().update()
    service.rotate("timestamp")
    service.trust.timestamp.version = 10
    service.sign()
    v2_with_delta(service, tmp_path)
    assert open_device().update().to_version == 2


def test_metadata_is_unavailable_for_now(service: FakeUpdateService, v1: Path, open_device: OpenDevice) -> None:
    service.metadata_status = 503
    with pytest.raises(ServiceUnavailableError, match="503"):
        open_device().update()


# --- self-test, revert, crash


def test_a_failed_self_test_reverts_reports_and_is_remembered(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    v2_with_delta(service, tmp_path)
    result = open_device(test_version=broken).update()
    assert (result.decision, result.from_version, result.to_version) == ("reverted", 1, 2)
    assert service.outcomes()[3:] == [(2, "downloaded"), (2, "applied"), (2, "reverted")]
    assert service.reports[-1].reason == "the logits are not finite"
    device: Device = open_device()
    assert device.active().manifest.version == 1
    assert device.status().failed_versions == (2,)
    downloads = len(service.package_requests())
    with pytest.raises(OfferRefusedError, match="failed its self-test on this device"):
        device.update()
    assert len(service.package_requests()) == downloads
    service.publish(write_tree(tmp_path / "v3", base_seed=3), version=3, deltas_from=(1,))
    assert device.update().to_version == 3


def test_the_same_bytes_under_a_newer_number_are_not_tried_again(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    assert open_device(test_version=broken).update().decision == "reverted"
    service.publish(v1, version=2)
    with pytest.raises(OfferRefusedError, match="failed its self-test"):
        open_device().update()


def test_the_old_slot_serves_during_the_self_test(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    v2_with_delta(service, tmp_path)
    seen = []

    def looking(tree: Path, manifest: VersionManifest) -> None:
        verify_tree(tree, manifest.files)
        status = open_device().status()
        seen.append((status.version, status.in_test))

    open_device(test_version=looking).update()
    assert seen == [(1, 2)]


def test_a_crash_in_the_self_test_is_retried_and_then_reverted(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    v2_with_delta(service, tmp_path)
    for _ in range(MAX_BOOTS):
        with pytest.raises(Crash):
            open_device(test_version=crashing).update()
        assert open_device().active().manifest.version == 1
    with pytest.raises(OfferRefusedError, match="failed its self-test"):
        open_device(test_version=crashing).update()
    assert service.outcomes()[-1] == (2, "failed")
    assert service.outcomes()[-2] == (2, "reverted")
    assert open_device().status().in_test is None


def test_one_crash_in_the_self_test_is_forgiven(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    with pytest.raises(Crash):
        open_device(test_version=crashing).update()
    result = open_device().update()
    assert (result.decision, result.to_version) == ("confirmed", 1)
    assert len(service.package_requests()) == 1


def test_being_stopped_during_the_self_test_is_no_crash(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    def stopped(_tree: Path, _manifest: VersionManifest) -> None:
        raise KeyboardInterrupt

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            open_device(test_version=stopped).update()
    assert open_device().update().to_version == 1


def test_a_missing_extra_is_not_held_against_the_version(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    def no_torch(_tree: Path, _manifest: VersionManifest) -> None:
        raise MissingExtraError("pip install lamella[device]")

    for _ in range(5):
        with pytest.raises(MissingExtraError):
            open_device(test_version=no_torch).update()
    # It waits, applied, and the operator is told once.
    assert len(service.package_requests()) == 1
    assert [outcome for _, outcome in service.outcomes()] == ["downloaded", "applied", "failed"]
    assert open_device().update().to_version == 1
    assert len(service.package_requests()) == 1


def test_reports_wait_for_the_service_and_come_in_order(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    service.report_status = 503
    open_device().update()
    assert service.reports == []
    assert open_device().status().reports_waiting == 4
    service.report_status = 204
    open_device().check()
    assert [outcome for _, outcome in service.outcomes()] == ["downloaded", "applied", "confirmed"]


def test_a_refused_report_does_not_block_the_others(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    service.report_status = 409
    open_device().update()
    assert open_device().status().reports_waiting == 0


def test_a_confirmation_nobody_heard_of_is_reported_late(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    device: Device = open_device()
    device.update()
    # As if the power went between the switch and the note of it.
    state = device._states.load()
    device._states.save(state.model_copy(update={"confirmed_offer_id": None, "highest_version": 0}))
    service.reports.clear()
    open_device().update()
    assert service.outcomes() == [(1, "confirmed")]
    assert open_device().status().highest_version == 1
    open_device().update()
    assert service.outcomes() == [(1, "confirmed")]


# --- this device


def test_two_updaters(service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice) -> None:
    device: Device = open_device()
    with update_lock(tmp_path / "home"), pytest.raises(UpdateInProgressError, match="Another process"):
        device.update()
    assert device.update().to_version == 1


def test_too_little_room_is_said_before_the_download(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device()
    disk = FaultyDisk(tmp_path / "stash", reports_free_bytes=100)
    with pytest.raises(DeviceDiskError, match=r"needs 0\.\d MB.*0\.0 MB are free"):
        open_device(disk=disk).update()
    assert service.package_requests() == []
    assert open_device().update().to_version == 1


def test_a_disk_that_becomes_full_at_any_byte_leaves_a_device_that_recovers(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device: Device = open_device()
    device.update()
    v2_with_delta(service, tmp_path)
    decisions = set()
    for space in range(0, 24_000, 1_500):
        try:
            decisions.add(open_device(disk=FaultyDisk(tmp_path / f"stash{space}", space_bytes=space)).update().decision)
        except DeviceDiskError:
            decisions.add("full")
        active = open_device().active()
        verify_tree(active.tree, active.manifest.files)
        if active.manifest.version == 2:
            break
    assert "full" in decisions
    open_device().update()
    assert open_device().active().manifest.version == 2


def test_a_revoked_credential_is_said(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device()
    (tmp_path / "home" / "credential").write_text("another-credential-1")
    with pytest.raises(EnrolmentError, match=r"does not accept this device.*Enrol it again"):
        open_device().update()


def test_the_credential_goes_with_every_request_to_the_service_and_only_there(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    sent = [headers.get("Authorization") for _, path, headers in service.requests if path != "/v1/devices"]
    assert set(sent) == {f"Bearer {CREDENTIAL}"}


# --- ways to a version: chain, delta, full


def chain_to(service: FakeUpdateService, *versions: int) -> Callable[[Offer], Offer]:
    """Add the chain over these versions to every offer that is no full package asked for."""

    def add(offer: Offer) -> Offer:
        if service.queries[-1].only_full:
            return offer
        steps = tuple(
            ChainStep(
                version=after,
                tree_hash=service.published[after].tree_hash,
                manifest_path=f"manifests/{service.model}/{after}.json",
                package=service.published[after].packages[before],
            )
            for before, after in pairwise(versions)
        )
        return offer.model_copy(update={"chain": steps})

    return add


def three_versions(service: FakeUpdateService, tmp_path: Path) -> None:
    v2_with_delta(service, tmp_path)
    service.publish(write_tree(tmp_path / "v3", base_seed=1, adapter_seed=3), version=3, deltas_from=(2, 1))
    service.on_offer = chain_to(service, 1, 2, 3)


def test_a_chain_of_deltas_is_taken_first(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device = open_device()
    device.update()
    three_versions(service, tmp_path)
    seen: list[tuple[int, int]] = []
    result = device.update(on_progress=lambda *step: seen.append(step))
    deltas = [service.published[2].packages[1], service.published[3].packages[2]]
    assert (result.decision, result.to_version, result.package) == ("confirmed", 3, "chain")
    assert result.package_bytes == result.bytes_downloaded == sum(delta.length for delta in deltas) == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    active = device.active()
    verify_tree(active.tree, active.manifest.files)
    # Nothing of the version between is left, and no device ever served it.
    assert sorted(path.name for path in active.tree.parent.iterdir()) == ["manifest.json", "tree"]
    assert list((tmp_path / "home" / "downloads").iterdir()) == []
    assert device.status().highest_version == 3
    assert service.outcomes()[3:] == [(3, outcome) for outcome in ("downloaded", "applied", "confirmed")]


@pytest.mark.parametrize("bad", [1, 2])
def test_a_bad_chain_gives_way_to_the_delta_and_that_to_the_full_package(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, bad: int
) -> None:
    open_device().update()
    three_versions(service, tmp_path)
    # The first way's first package, then the second way's only one.
    service.faults[:] = [Fault(corrupt_at=50)] * bad
    result = open_device().update()
    assert (result.decision, result.to_version) == ("confirmed", 3)
    assert result.package == {1: "delta", 2: "full"}[bad]
    assert "signed sha256" in result.reason


def test_a_chain_without_room_gives_way_to_the_delta(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The versions between need room of their own; the direct delta makes one version."""
    open_device().update()
    three_versions(service, tmp_path)
    fill = SlotFiller.fill

    def full_for_two(self: SlotFiller, way: tuple[VerifiedOffer, ...], *rest: Any) -> UpdateResult:
        if len(way) > 1:
            raise DeviceDiskError("no room for two")
        return fill(self, way, *rest)

    monkeypatch.setattr(SlotFiller, "fill", full_for_two)
    result = open_device().update()
    assert (result.decision, result.to_version, result.package) == ("confirmed", 3, "delta")
    assert "no room for two" in result.reason


@pytest.mark.parametrize("versions", [(2, 3), (1, 2), (1, 2, 2, 3), (1, 3, 2, 3)])
def test_a_chain_that_leads_elsewhere_is_left_out(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, versions: tuple[int, ...]
) -> None:
    open_device().update()
    three_versions(service, tmp_path)
    for published in service.published.values():
        for source in (1, 2, 3):
            published.packages.setdefault(source, published.packages[None])
    service.on_offer = chain_to(service, *versions)
    result = open_device().update()
    assert (result.decision, result.to_version, result.package) == ("confirmed", 3, "delta")


def test_a_chain_with_a_version_that_nobody_signed_is_left_out(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    three_versions(service, tmp_path)
    true_chain = service.on_offer

    def lie(offer: Offer) -> Offer:
        first, *rest = true_chain(offer).chain
        return offer.model_copy(update={"chain": (first.model_copy(update={"tree_hash": "0" * 64}), *rest)})

    service.on_offer = lie
    assert open_device().update().package == "delta"


# --- the device's own policy


def test_an_update_waits_for_better_conditions_and_now_means_now(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device = open_device(conditions=lambda: Conditions(battery_percent=3, is_charging=False))
    result = device.update()
    assert (result.decision, result.to_version) == ("postponed", None)
    assert "battery is at 3%" in result.reason
    assert "battery is at 3%" in device.status().last_decision
    assert service.package_requests() == []
    assert device.update(ignore_policy=True).decision == "confirmed"


def test_a_metered_connection_takes_small_packages_only(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    open_device().update()
    v2_with_delta(service, tmp_path)
    delta = service.published[2].packages[1].length
    (tmp_path / "home" / "device.toml").write_text(f"[download]\nmetered_max_bytes = {delta}\n")
    service.faults[:] = [Fault(corrupt_at=50)]
    device = open_device(conditions=lambda: Conditions(is_metered=True))
    # The delta may be downloaded, but it is bad, and the full package must not take its place on this connection.
    result = device.update()
    assert result.decision == "postponed"
    assert "metered_max_bytes" in result.reason
    assert open_device().update().package in {"delta", "full"}


def test_a_download_stops_when_the_conditions_change_and_goes_on_later(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client_sdk.slot_filler._LOOK_EVERY_S", 0.0)
    looks = iter([Conditions(is_metered=False)] * 3)
    device = open_device(conditions=lambda: next(looks, Conditions(is_metered=True)))
    (tmp_path / "home" / "device.toml").write_text('[download]\nmetered = "never"\n')
    monkeypatch.setattr("client_sdk.download.CHUNK_BYTES", 1024)
    result = device.update()
    assert result.decision == "postponed"
    assert "of it are here: the connection is metered" in result.reason
    (part,) = (tmp_path / "home" / "downloads").glob("*.part")
    kept = part.stat().st_size
    assert 0 < kept < service.published[1].packages[None].length
    again = open_device().update()
    assert again.decision == "confirmed"
    assert again.bytes_downloaded == service.published[1].packages[None].length - kept


def test_room_is_kept_on_the_disk_for_everything_else(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device = open_device()
    (tmp_path / "home" / "device.toml").write_text(f"[download]\nreserve_bytes = {1 << 60}\n")
    with pytest.raises(DeviceDiskError, match=r"download\.reserve_bytes"):
        device.update()
    assert service.package_requests() == []


def test_the_service_is_told_what_an_update_may_use_and_says_when_that_is_too_little(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    def told() -> int:
        return next(int(sent[ROOM_HEADER]) for _, _, sent in reversed(service.requests) if ROOM_HEADER in sent)

    device = open_device()
    service.answers[:] = [409]
    with pytest.raises(DeviceDiskError, match="409"):
        device.update()
    assert told() > 0
    (tmp_path / "home" / "device.toml").write_text(f"[download]\nreserve_bytes = {1 << 60}\n")
    service.answers[:] = [409]
    with pytest.raises(DeviceDiskError, match="409"):
        device.update()
    assert told() == 0
    assert service.package_requests() == []


def test_a_settings_file_that_makes_no_sense_stops_the_update_before_it_starts(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device = open_device()
    (tmp_path / "home" / "device.toml").write_text("[download]\nmetred = 1\n")
    with pytest.raises(ConfigurationError, match=r"download\.metred"):
        device.update()


# --- mirrors


def mirrors(tmp_path: Path, *urls: str) -> None:
    (tmp_path / "home" / "device.toml").write_text(f"[download]\nmirrors = {json.dumps(list(urls))}\n")


def test_a_mirror_is_asked_first_and_never_sees_the_credential(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    with mirror_of(service.files) as mirror:
        device = open_device()
        mirrors(tmp_path, mirror.address)
        assert device.update().decision == "confirmed"
    assert service.package_requests() == []
    assert [path for path, _ in mirror.requests] == [f"/packages/{service.model}/1/full.lmpkg"]
    assert all("authorization" not in {name.lower() for name in headers} for _, headers in mirror.requests)


@pytest.mark.parametrize("behaviour", ["away", "lies", "cuts", "portal", "other"])
def test_a_bad_mirror_costs_time_only(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, behaviour: str
) -> None:
    with mirror_of(service.files, behaviour=behaviour) as mirror:
        device = open_device()
        mirrors(tmp_path, mirror.address)
        result = device.update()
    assert (result.decision, result.package) == ("confirmed", "full")
    assert mirror.requests
    assert len(service.package_requests()) == 1
    active = device.active()
    verify_tree(active.tree, active.manifest.files)


def test_all_sources_together_have_the_time_of_one(tmp_path: Path) -> None:
    given = []

    class Source:
        deadline = 123.0

        def fetch(self, *_arguments: object, until: float | None = None, **_options: object) -> int:
            given.append(until)
            raise ServiceUnavailableError("away")

    fetcher = MirroredFetcher([Source(), Source()], Source(), LocalDisk())  # type: ignore[arg-type]
    with pytest.raises(ServiceUnavailableError):
        fetcher.fetch("p", tmp_path / "p", length=1, sha256="", on_progress=lambda _done, _total: None)
    assert given == [123.0] * 3


def test_the_service_continues_what_a_mirror_began(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    with mirror_of(service.files, behaviour="cuts") as mirror:
        device = open_device()
        mirrors(tmp_path, mirror.address)
        result = device.update()
    [headers] = service.package_requests()
    assert headers["Range"].startswith("bytes=")
    assert headers["Range"] != "bytes=0-"
    assert result.bytes_downloaded < result.package_bytes


# --- bit rot


def rot(tree: Path) -> None:
    weights = tree / "base" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)


def test_bit_rot_is_found_and_repaired_from_the_service(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device = open_device()
    device.update()
    assert device.repair().decision == "up_to_date"
    before = len(service.package_requests())
    rot(device.active().tree)
    assert device.update().decision == "up_to_date"
    repaired = device.repair()
    assert (repaired.decision, repaired.to_version, repaired.package) == ("confirmed", 1, "full")
    active = device.active()
    verify_tree(active.tree, active.manifest.files)
    assert len(service.package_requests()) == before + 1


@pytest.mark.parametrize("file", ["base/model.safetensors", "base/config.json"])
def test_a_lost_file_is_repaired(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, file: str
) -> None:
    device = open_device()
    device.update()
    (device.active().tree / file).unlink()
    assert device.repair().decision == "confirmed"
    active = device.active()
    verify_tree(active.tree, active.manifest.files)


def test_damage_that_the_service_cannot_repair_is_told(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    device = open_device()
    device.update()
    rot(device.active().tree)
    service.answers[:] = [204]
    with pytest.raises(DeviceDiskError, match=r"base/model\.safetensors is damaged"):
        device.repair()
    # What serves is left as it is: an answer of a damaged model may still be better than none.
    assert device.status().version == 1


# --- between the device and the service


def behind(network: Network, tmp_path: Path, open_device: OpenDevice, **options: object) -> Device:
    """A device that reaches its service through a network only."""
    device = open_device(**options)
    states = StateFile(tmp_path / "home", LocalDisk())
    states.save(states.load().model_copy(update={"server_url": network.address}))
    return device


@pytest.mark.parametrize("where", ["/v1/metadata/", "/v1/updates/check", "/v1/targets/packages/", "/v1/targets/man"])
def test_a_captive_portal_is_named_and_nothing_is_held_against_the_package(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, where: str
) -> None:
    weather = Weather(is_portal=lambda path: path.startswith(where))
    with Network(service.address, weather).running() as network:
        device = behind(network, tmp_path, open_device)
        with pytest.raises(ServiceUnavailableError, match="captive portal"):
            device.update()
        assert service.reports == []
        network.weather = Weather()
        assert device.update().decision == "confirmed"


@pytest.mark.parametrize(
    ("weather", "accident"),
    [
        (Weather(loss=0.4, latency_s=0.01), "loss"),
        (Weather(bytes_per_s=30_000, latency_s=0.05), ""),  # a phone with one bar of 2G
        (Weather(reset=0.3), "reset"),
        (Weather(truncate=0.3), "truncate"),
        (Weather(loss=0.1, reset=0.2, truncate=0.2), "truncate"),
    ],
)
def test_bad_networks_only_cost_time(
    service: FakeUpdateService,
    v1: Path,
    tmp_path: Path,
    open_device: OpenDevice,
    weather: Weather,
    accident: str,
) -> None:
    with Network(service.address, weather, seed=3).running() as network:
        device = behind(network, tmp_path, open_device)
        for _ in range(80):  # every failure is one that the next poll answers
            try:
                result = device.update()
                break
            except ServiceUnavailableError:
                continue
    assert (result.decision, result.to_version) == ("confirmed", 1)
    assert not accident or accident in network.accidents
    active = device.active()
    verify_tree(active.tree, active.manifest.files)


def test_bits_that_flip_on_the_way_are_never_installed(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    with Network(service.address, Weather(corrupt=0.3), seed=5).running() as network:
        device = behind(network, tmp_path, open_device)
        for _ in range(20):
            # Wherever the bit was: metadata, manifest, offer or package, or a header's length.
            with contextlib.suppress(RefusedError, RetryLaterError):
                device.update()
                break
        assert "corrupt" in network.accidents
        network.weather = Weather()
        assert device.update().decision in {"confirmed", "up_to_date"}
    active = device.active()
    assert active.manifest.tree_hash == service.published[1].tree_hash
    verify_tree(active.tree, active.manifest.files)
