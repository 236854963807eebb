from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from simulators.server_home import MODEL, Clock, make_manifest, make_package, release

from delta_updates import VersionManifest
from server.config import Settings
from server.errors import ConfigurationError, ConflictError, DatabaseError, InvalidRecordError, NotFoundError
from server.registry import GateResult, Registry, VersionRecord


def add_base(registry: Registry) -> VersionRecord:
    return registry.add_candidate(make_manifest())


def add_adapter(registry: Registry, parent: int, letter: str = "b") -> VersionRecord:
    return registry.add_candidate(make_manifest(kind="adapter", parent=parent, adapter=letter))


def test_numbers_count_up_per_model_and_are_in_the_manifest(registry: Registry) -> None:
    first, second = add_base(registry), add_adapter(registry, 1)
    other = registry.add_candidate(make_manifest(model="other"))
    assert (first.number, second.number, other.number) == (1, 2, 1)
    assert second.manifest.version == 2
    assert VersionManifest.from_bytes(second.manifest.to_bytes()) == registry.version(MODEL, 2).manifest
    assert registry.models() == ("other", MODEL)
    assert [version.number for version in registry.versions(MODEL)] == [1, 2]
    assert [version.number for version in registry.versions(MODEL, after=1, limit=1)] == [2]


def test_a_number_can_be_asked_to_lie_above_another(registry: Registry) -> None:
    assert registry.add_candidate(make_manifest(), above=9).number == 10
    assert registry.add_candidate(make_manifest(base="b")).number == 11
    assert registry.add_candidate(make_manifest(base="c"), above=5).number == 12


def test_a_number_is_given_out_once_also_to_many_at_once(registry: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(lambda _: add_base(registry), range(24)))
    assert sorted(record.number for record in records) == list(range(1, 25))


def test_a_refused_candidate_uses_no_number(registry: Registry) -> None:
    add_base(registry)
    with pytest.raises(NotFoundError, match="no v7"):
        add_adapter(registry, 7)
    assert add_adapter(registry, 1).number == 2


def test_an_adapter_stands_on_its_parents_base(registry: Registry) -> None:
    add_base(registry)
    with pytest.raises(InvalidRecordError, match="needs a parent"):
        registry.add_candidate(make_manifest(kind="adapter", adapter="b"))
    with pytest.raises(InvalidRecordError, match="stands on base"):
        registry.add_candidate(make_manifest(kind="adapter", parent=1, base="d", adapter="b"))


def test_a_candidate_becomes_released_once_and_stays(registry: Registry, clock: Clock) -> None:
    add_base(registry)
    assert registry.latest_released(MODEL) is None
    released = release(registry, 1)
    assert (released.state, released.released_at) == ("released", clock())
    clock.advance(hours=1)
    assert registry.mark_released(MODEL, 1) == released
    with pytest.raises(ConflictError, match="only a candidate can be rejected"):
        registry.reject(MODEL, 1, "second thoughts")
    with pytest.raises(ConflictError, match="only a candidate can get packages"):
        registry.add_packages(MODEL, 1, [make_package(1, digest="e")])
    assert registry.latest_released(MODEL) == released


def test_a_release_needs_a_full_package(registry: Registry) -> None:
    add_base(registry)
    with pytest.raises(ConflictError, match="no full package"):
        registry.mark_released(MODEL, 1)


def test_an_adapter_needs_a_passed_gate(registry: Registry) -> None:
    add_base(registry)
    release(registry, 1)
    add_adapter(registry, 1)
    registry.add_packages(MODEL, 2, [make_package(2)])
    with pytest.raises(ConflictError, match="not passed the evaluation gate"):
        registry.mark_released(MODEL, 2)
    registry.record_gate(MODEL, 2, GateResult(candidate_loss=2.0, parent_loss=1.0, margin=0.5))
    with pytest.raises(ConflictError, match="not passed the evaluation gate"):
        registry.mark_released(MODEL, 2)


def test_an_older_candidate_can_no_longer_be_released(registry: Registry) -> None:
    add_base(registry)
    release(registry, 1)
    add_adapter(registry, 1)
    add_adapter(registry, 1, "c")
    release(registry, 3)
    with pytest.raises(ConflictError, match="versions never go down"):
        release(registry, 2)


def test_a_rejected_candidate_keeps_the_first_reason(registry: Registry) -> None:
    add_base(registry)
    registry.reject(MODEL, 1, "worse")
    registry.reject(MODEL, 1, "much worse")
    assert (registry.version(MODEL, 1).state, registry.version(MODEL, 1).reason) == ("rejected", "worse")
    with pytest.raises(ConflictError, match="worse"):
        release(registry, 1)


def test_a_loss_that_is_no_number_never_passes(registry: Registry) -> None:
    add_base(registry)
    gate = GateResult(candidate_loss=float("nan"), parent_loss=1.0, margin=0.5)
    assert not gate.is_passed
    registry.record_gate(MODEL, 1, gate)
    assert registry.version(MODEL, 1).gate is None


def test_packages_are_recorded_once_and_never_change(registry: Registry) -> None:
    add_base(registry)
    packages = [make_package(1)]
    registry.add_packages(MODEL, 1, packages)
    registry.add_packages(MODEL, 1, packages)
    assert registry.packages(MODEL, 1) == tuple(packages)
    with pytest.raises(ConflictError, match="other bytes"):
        registry.add_packages(MODEL, 1, [make_package(1, digest="d")])


def test_only_released_targets_are_served(registry: Registry) -> None:
    version = add_base(registry)
    registry.add_packages(MODEL, 1, [make_package(1)])
    assert registry.target(make_package(1).path) is None
    assert registry.target(version.manifest_path) is None
    registry.mark_released(MODEL, 1)
    package, manifest = registry.target(make_package(1).path), registry.target(version.manifest_path)
    assert package is not None
    assert (package.length, package.sha256) == (3_000_000_000, "c" * 64)
    assert manifest is not None
    assert manifest.length == len(version.manifest.to_bytes())
    assert registry.target("manifests/tiny/2.json") is None
    assert registry.target("packages/tiny/1/../1/full.lmpkg") is None


def test_the_field_is_what_devices_report_and_the_latest_release(registry: Registry) -> None:
    add_base(registry)
    release(registry, 1)
    for number in (2, 3, 4):
        add_adapter(registry, number - 1, "bcd"[number - 2])
        release(registry, number)
    assert registry.versions_in_the_field(MODEL) == (4,)
    devices = []
    for installed in (1, 2, 2, 99):
        token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
        device, _ = registry.enrol(token, name="device")
        devices.append(device.device_id)
        registry.record_check(device.device_id, installed_version=installed, installed_hash=None)
    assert registry.versions_in_the_field(MODEL) == (1, 2, 4)
    registry.revoke_device(devices[0])
    assert registry.versions_in_the_field(MODEL) == (2, 4)
    assert registry.versions_in_the_field("other") == ()


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("mysql://root:hunter2@db/x", ConfigurationError, "SQLite or PostgreSQL"),
        ("no url hunter2", ConfigurationError, "LAMELLA_DATABASE_URL"),
        ("sqlite:////nowhere/hunter2.sqlite", DatabaseError, "unable to open"),
        ("postgresql://lamella:hunter2@127.0.0.1:1/x", DatabaseError, "does not answer"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    home_settings: Settings, url: str, error: type[Exception], says: str
) -> None:
    settings = home_settings.model_copy(update={"database_url": Settings(database_url=url).database_url})
    with pytest.raises(error, match=says) as caught:
        Registry.open(settings)
    assert "hunter2@" not in str(caught.value)
