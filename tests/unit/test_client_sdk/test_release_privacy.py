"""A device reads the signed privacy statement of a release before it switches, and holds it to its owner's limit."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from simulators.statements import guarantee, state, statement_for
from simulators.update_service import FakeUpdateService
from simulators.versions import manifest_of, write_tree

from client_sdk import Device, MetadataError, OfferRefusedError, RefusedError, ReleaseDeclinedError
from delta_updates import PROTOCOL
from privacy.attestation import MAX_ENVELOPE_BYTES, Guarantee, statement_path

OpenDevice = Callable[..., Device]


@pytest.fixture
def publish(service: FakeUpdateService, tmp_path: Path) -> Callable[..., bytes]:
    """Publishes v1 with a statement."""

    def publish_it(*guarantees: Guarantee, **facts: object) -> bytes:
        tree = write_tree(tmp_path / "v1")
        service.publish(tree, version=1)
        manifest = manifest_of(tree, version=1, model=service.model)
        return state(service, statement_for(manifest, *guarantees, **facts), version=1)

    return publish_it


def set_limit(device: Device, epsilon: float) -> None:
    (device.home / "device.toml").write_text(f"[releases]\nmax_epsilon = {epsilon}\n")


def reasons(service: FakeUpdateService) -> list[str]:
    return [report.reason for report in service.reports]


@pytest.mark.parametrize("guarantees", [(), (guarantee(7.9),), (guarantee(3.0), guarantee(7.9, unit="user"))])
def test_a_release_within_the_limit_is_installed(
    publish: Callable[..., bytes], open_device: OpenDevice, guarantees: tuple[Guarantee, ...]
) -> None:
    publish(*guarantees)
    assert open_device(max_epsilon=8.0).update().decision == "confirmed"


@pytest.mark.parametrize(
    ("guarantees", "why"),
    [
        ((guarantee(8.1),), "ε = 8.1 per example"),
        ((guarantee(1.0), guarantee(9.0, unit="user")), "ε = 9 per user"),
        ((guarantee(math.inf),), "no privacy guarantee per example"),
        ((guarantee(0.1, delta=0.5),), "δ = 0.5"),
    ],
)
def test_a_release_over_the_limit_is_refused_and_the_service_is_told_why(
    service: FakeUpdateService,
    publish: Callable[..., bytes],
    open_device: OpenDevice,
    guarantees: tuple[Guarantee, ...],
    why: str,
) -> None:
    publish(*guarantees)
    device = open_device(max_epsilon=8.0)
    with pytest.raises(OfferRefusedError, match=why):
        device.update()
    assert device.status().version is None
    assert service.package_requests() == []  # nothing was downloaded for it
    assert [why in reason and "at most 8" in reason for reason in reasons(service)] == [True]
    assert service.outcomes() == [(1, "failed")]  # a service of before has no other word
    assert open_device().update().decision == "confirmed"  # whose owner sets no limit takes it


def test_a_limit_is_told_as_a_decline_once_and_what_does_not_hold_as_a_failure(
    service: FakeUpdateService, publish: Callable[..., bytes], open_device: OpenDevice
) -> None:
    service.protocol = PROTOCOL
    publish(guarantee(9.0))
    device = open_device(max_epsilon=8.0)
    for _ in range(3):
        with pytest.raises(ReleaseDeclinedError):
            device.update()
    assert service.outcomes() == [(1, "declined")]
    set_limit(device, 9.5)
    assert open_device().update().decision == "confirmed"  # the owner thought better of it
    assert service.outcomes()[-1] == (1, "confirmed")


def test_a_decline_waits_until_the_service_has_said_which_words_it_has(
    service: FakeUpdateService, publish: Callable[..., bytes], open_device: OpenDevice
) -> None:
    service.protocol = PROTOCOL
    publish(guarantee(9.0))
    device = open_device(max_epsilon=8.0)
    service.report_status = 503
    with pytest.raises(ReleaseDeclinedError):
        device.update()
    service.report_status = 204
    # Another process, which has not heard the service yet, delivers what is queued before it asks.
    with pytest.raises(ReleaseDeclinedError):
        open_device(max_epsilon=8.0).check()
    assert service.outcomes() == []
    with pytest.raises(ReleaseDeclinedError):
        open_device(max_epsilon=8.0).update()
    assert set(service.outcomes()) == {(1, "declined")}


def test_the_stricter_of_file_and_program_holds(
    service: FakeUpdateService, publish: Callable[..., bytes], open_device: OpenDevice
) -> None:
    publish(guarantee(5.0))
    for in_file, given in ((4.0, None), (4.0, 9.0), (9.0, 4.0)):
        device = open_device(max_epsilon=given)
        set_limit(device, in_file)
        with pytest.raises(OfferRefusedError, match="at most 4"):
            device.update()
    set_limit(device, 9.0)
    assert open_device().update().decision == "confirmed"
    assert service.outcomes()[-1] == (1, "confirmed")


def test_a_release_without_a_statement_is_taken_only_without_a_limit(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    assert v1.exists()
    with pytest.raises(OfferRefusedError, match="no signed privacy statement"):
        open_device(max_epsilon=8.0).update()
    assert "no signed privacy statement" in reasons(service)[0]
    assert open_device().update().decision == "confirmed"


@pytest.mark.parametrize("fact", [{"version": 2}, {"model": "other"}, {"tree_hash": "d" * 64}, {"base_hash": "d" * 64}])
@pytest.mark.parametrize("limit", [None, 8.0])
def test_another_releases_statement_does_not_vouch_for_this_one(
    publish: Callable[..., bytes], open_device: OpenDevice, fact: dict[str, object], limit: float | None
) -> None:
    publish(guarantee(1.0), **fact)
    with pytest.raises(OfferRefusedError, match=f"about another release: {next(iter(fact)).replace('_', ' ')}"):
        open_device(max_epsilon=limit).update()


def test_a_statement_about_another_manifest_of_the_same_tree_is_refused(
    service: FakeUpdateService, tmp_path: Path, open_device: OpenDevice
) -> None:
    tree = write_tree(tmp_path / "v1")
    service.publish(tree, version=1, facts={"run": "another"})
    state(service, statement_for(manifest_of(tree, version=1, model=service.model), guarantee(1.0)), version=1)
    with pytest.raises(OfferRefusedError, match="another release: manifest"):
        open_device().update()


@pytest.mark.parametrize("limit", [None, 8.0])
def test_a_tampered_statement_is_refused(
    service: FakeUpdateService, publish: Callable[..., bytes], open_device: OpenDevice, limit: float | None
) -> None:
    raw = publish(guarantee(9.0))
    path = statement_path(service.model, 1)
    for changed in (raw[:-1], raw.replace(b"A", b"B", 1), raw + b" "):
        service.files[path] = changed
        with pytest.raises(RefusedError):
            open_device(max_epsilon=limit).update()
    service.files[path] = raw
    assert open_device().update().decision == "confirmed"


def test_a_statement_changed_and_signed_as_a_file_still_needs_its_own_signature(
    service: FakeUpdateService, publish: Callable[..., bytes], open_device: OpenDevice
) -> None:
    envelope = json.loads(publish(guarantee(9.0)))
    envelope["payload"] = envelope["payload"][:-8] + "AAAA" + envelope["payload"][-4:]
    key = service.trust.signers["releases"][0].public_key
    custom = {"keyid": key.keyid, "public_key": key.keyval["public"]}
    service.add_target(statement_path(service.model, 1), json.dumps(envelope).encode(), custom)
    service.sign()
    with pytest.raises(MetadataError, match="signature does not hold"):
        open_device().update()


def test_a_statement_signed_by_a_key_that_the_metadata_does_not_name_is_refused(
    service: FakeUpdateService, tmp_path: Path, open_device: OpenDevice
) -> None:
    tree = write_tree(tmp_path / "v1")
    service.publish(tree, version=1)
    statement = statement_for(manifest_of(tree, version=1, model=service.model), guarantee(1.0))
    state(service, statement, version=1, signer=CryptoSigner.generate_ed25519())
    with pytest.raises(MetadataError, match="signature does not hold"):
        open_device().update()
    service.add_target(statement_path(service.model, 1), service.files[statement_path(service.model, 1)], {})
    service.sign()
    with pytest.raises(MetadataError, match="does not say which key"):
        open_device().update()


def test_a_statement_outlives_the_key_that_signed_it(
    service: FakeUpdateService, publish: Callable[..., bytes], open_device: OpenDevice
) -> None:
    publish(guarantee(1.0))
    device = open_device(max_epsilon=8.0)
    service.rotate("releases")
    service.sign()
    assert device.update().decision == "confirmed"


def test_a_statement_larger_than_what_devices_read_is_refused_before_it_is_fetched(
    service: FakeUpdateService, v1: Path, open_device: OpenDevice
) -> None:
    assert v1.exists()
    path = statement_path(service.model, 1)
    service.add_target(path, b"x" * (MAX_ENVELOPE_BYTES + 1), {})
    service.sign()
    with pytest.raises(MetadataError, match="at most"):
        open_device().update()
    assert not any(path in asked for _, asked, _ in service.requests)


def test_only_what_will_serve_is_held_to_the_limit(
    service: FakeUpdateService, publish: Callable[..., bytes], open_device: OpenDevice, tmp_path: Path
) -> None:
    publish(guarantee(1.0))
    assert open_device(max_epsilon=2.0).update().decision == "confirmed"
    tree = write_tree(tmp_path / "v2", adapter_seed=2)
    service.publish(tree, version=2, deltas_from=(1,))
    state(service, statement_for(manifest_of(tree, version=2, model=service.model), guarantee(3.0)), version=2)
    with pytest.raises(OfferRefusedError, match="serves on"):
        open_device(max_epsilon=2.0).update()
    assert open_device(max_epsilon=2.0).status().version == 1
    assert open_device(max_epsilon=4.0).update().to_version == 2
