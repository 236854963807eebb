"""The doctor finds each planted fault and mends what can be mended; the collector removes only what nobody needs."""

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from simulators.power_cut import Fuse, FusedRegistry, FusedStore, PowerCutError
from simulators.server_home import MODEL, Home, offline_keys, open_home
from sqlalchemy import text
from typer.testing import CliRunner

from delta_updates import UpdateQuery
from server.cli.main import app
from server.errors import ServerError
from server.offers import cheapest_chain, choose_package
from server.publishing import Gate, publish
from server.registry import DeviceRecord
from server.signing import Lifetimes, SignedMetadata
from server.upkeep import Workshop, collect, examine, mend

TWO_DAYS_AGO_S = 2 * 24 * 3600


@pytest.fixture
def home(three_versions: Path, tmp_path: Path) -> Home:
    """v1 to v3 released."""
    folder = tmp_path / "copy"
    shutil.copytree(three_versions, folder)
    return open_home(folder)


def shop_of(home: Home, **changes: object) -> Workshop:
    settings = home.settings.model_copy(update=changes)
    return Workshop(settings=settings, registry=home.registry, artifacts=home.artifacts, metadata=home.metadata)


def age(path: Path) -> None:
    """Make a file or folder two days older."""
    then = path.stat().st_mtime - TWO_DAYS_AGO_S
    os.utime(path, (then, then))


def package_file(home: Home, number: int, place: int = 0) -> Path:
    return home.artifacts.path(home.registry.packages(MODEL, number)[place].sha256)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def execute(home: Home, statement: str) -> None:
    with home.registry._connection() as connection:
        connection.execute(text(statement))


def lose_manifest(home: Home) -> None:
    digest = next(n.digest for n in home.registry.named_artifacts() if n.named_by == f"manifests/{MODEL}/3.json")
    home.artifacts.path(digest).unlink()


def leave_orphan(home: Home) -> None:
    age(home.artifacts.path(home.artifacts.put_bytes(b"nobody wants this")))


def leave_half_written(home: Home) -> None:
    (home.settings.artifacts_dir / ".0123456789abcdef.tmp").write_bytes(b"half")
    age(home.settings.artifacts_dir / ".0123456789abcdef.tmp")


def leave_work(home: Home) -> None:
    folder = home.settings.work_dir / "attempt-cut"
    (folder / "v1").mkdir(parents=True)
    age(folder)


def unsign(home: Home) -> None:
    home.metadata.drop_packages([f"packages/{MODEL}/3/full.lmpkg"])


def forget_release(home: Home) -> None:
    execute(home, "UPDATE versions SET state = 'candidate', released_at = NULL WHERE number = 3")


def collect_by_half(home: Home) -> None:
    execute(
        home, "UPDATE packages SET collected_at = '2026-01-01 00:00:00' WHERE version = 2 AND source_version IS NULL"
    )


def cut_package(home: Home) -> None:
    package_file(home, 3).chmod(0o644)
    os.truncate(package_file(home, 3), 10)


MENDABLE: dict[str, tuple[Callable[[Home], object], set[str]]] = {
    "package lost": (lambda home: package_file(home, 3).unlink(), {"missing-artifact"}),
    "delta lost": (lambda home: package_file(home, 3, 1).unlink(), {"missing-artifact"}),
    "package damaged": (lambda home: damage(package_file(home, 3)), {"damaged-artifact"}),
    "package cut": (cut_package, {"damaged-artifact"}),
    "manifest lost": (lose_manifest, {"missing-artifact"}),
    "orphan": (leave_orphan, {"unnamed-artifact"}),
    "half written": (leave_half_written, {"leftover"}),
    "work": (leave_work, {"leftover"}),
    "package unsigned": (unsign, {"unsigned-file"}),
    "not marked released": (forget_release, {"unreleased-version"}),
    "collected by half": (collect_by_half, {"signed-leftover"}),
}


def test_a_home_without_faults_has_no_findings(home: Home) -> None:
    assert examine(shop_of(home)) == ()


@pytest.mark.parametrize("fault", MENDABLE)
def test_a_fault_is_found_and_mended(home: Home, fault: str) -> None:
    plant, kinds = MENDABLE[fault]
    plant(home)
    findings = examine(shop_of(home))
    assert {finding.kind for finding in findings} == kinds
    assert mend(findings) == ()
    # A collected package's bytes are an orphan from then on, and young ones are left alone.
    assert examine(shop_of(home)) == ()


def lose_weights(home: Home) -> None:
    digest = next(f.sha256 for f in home.registry.version(MODEL, 1).manifest.files if f.path.endswith("safetensors"))
    home.artifacts.path(digest).unlink()


def sign_something_else(home: Home) -> None:
    execute(home, "UPDATE packages SET length = length + 1 WHERE version = 3 AND source_version IS NULL")


def restore_old_database(home: Home) -> None:
    of_rollouts = "WHERE rollout_id IN (SELECT rollout_id FROM rollouts WHERE version = 3)"
    for statement in (
        f"DELETE FROM rollout_changes {of_rollouts}",  # noqa: S608 - words of this test
        f"DELETE FROM rollout_devices {of_rollouts}",  # noqa: S608
        "DELETE FROM channel_moves WHERE version = 3",
        "DELETE FROM rollouts WHERE version = 3",
        "DELETE FROM packages WHERE version = 3",
        "DELETE FROM privacy_statements WHERE version = 3",
        "DELETE FROM version_files WHERE version = 3",
    ):
        execute(home, statement)
    execute(home, "DELETE FROM versions WHERE number = 3")


@pytest.mark.parametrize(
    ("plant", "kinds"),
    [
        (lose_weights, {"missing-artifact"}),
        (sign_something_else, {"damaged-artifact", "signed-otherwise"}),
        (restore_old_database, {"unknown-signed-file"}),
    ],
)
def test_a_fault_that_needs_a_person_is_told_and_left(
    home: Home, plant: Callable[[Home], object], kinds: set[str]
) -> None:
    plant(home)
    findings = examine(shop_of(home))
    assert {finding.kind for finding in findings} == kinds
    assert {finding.kind for finding in mend(findings)} == kinds
    assert all("estore" in finding.problem or finding.remedy for finding in findings)


def test_what_is_in_the_making_is_left_alone(home: Home) -> None:
    home.artifacts.put_bytes(b"a row will name it soon")
    (home.settings.work_dir / "attempt-running").mkdir()
    assert examine(shop_of(home)) == ()
    assert [finding.kind for finding in examine(shop_of(home, grace_hours=0.0))] == ["unnamed-artifact", "leftover"]


def test_without_reading_only_lengths_are_compared(home: Home) -> None:
    damage(package_file(home, 3))
    assert examine(shop_of(home), read_all=False) == ()


def test_without_the_releases_key_an_unsigned_manifest_is_left(home: Home, tmp_path: Path) -> None:
    plain = SignedMetadata.open(home.settings)
    unsign(home)
    shop = dataclasses.replace(shop_of(home), metadata=plain)
    assert mend(examine(shop)) == ()  # packages are the online key's


def cut_publishing(home: Home, fuse: Fuse) -> None:
    registry = FusedRegistry.open(home.settings)
    registry.fuse = fuse
    metadata = SignedMetadata(
        home.settings.home,
        lifetimes=Lifetimes.of(home.settings),
        release_keys=offline_keys(home.folder),
        write=fuse.write,
    )
    try:
        publish(
            registry,
            FusedStore(home.settings.artifacts_dir, fuse),
            metadata,
            model=MODEL,
            version=4,
            gate=Gate(margin=0.1).judge(candidate_loss=2.0, parent_loss=2.0),
            work=home.settings.work_dir,
            on_step=lambda step, *_: fuse.burn(step),
        )
    finally:
        registry.close()


@pytest.mark.slow
def test_after_a_cut_at_any_step_of_publishing_the_doctor_leaves_nothing(home: Home, tmp_path: Path) -> None:
    home.candidate(9, parent=3)
    home.registry.close()
    shutil.copytree(home.folder, tmp_path / "clean")
    clean = open_home(tmp_path / "clean")
    fuse = Fuse()
    cut_publishing(clean, fuse)
    states = set()
    for cut_at in range(1, len(fuse.operations) + 1):
        folder = tmp_path / f"cut-{cut_at}"
        shutil.copytree(home.folder, folder)
        cut = open_home(folder)
        with pytest.raises(PowerCutError):
            cut_publishing(cut, Fuse(cut_at))
        shop = shop_of(cut, grace_hours=0.0)
        assert mend(examine(shop)) == (), fuse.operations[cut_at - 1]
        assert examine(shop) == ()
        states.add(cut.registry.version(MODEL, 4).state)
        assert cut.publish(4, loss=None if cut.registry.version(MODEL, 4).state == "released" else 2.0)
        assert examine(shop) == ()
        cut.registry.close()
    assert states == {"candidate", "released"}


def enrol(home: Home, installed: int | None) -> DeviceRecord:
    token, _ = home.registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, _ = home.registry.enrol(token, name="device")
    if installed is not None:
        tree = home.registry.version(MODEL, installed).manifest.tree_hash
        home.registry.record_check(device.device_id, installed_version=installed, installed_hash=tree)
    return device


def offered(home: Home, device: DeviceRecord) -> tuple[object, ...]:
    """What the service would answer a device with now."""
    latest = home.registry.latest_released(MODEL)
    assert latest is not None
    known = home.registry.device(device.device_id)
    query = UpdateQuery(model=MODEL, installed_version=known.installed_version, installed_hash=known.installed_hash)
    packages = home.registry.packages(MODEL, latest.number)
    choice = choose_package(query, latest=latest, installed_hash=known.installed_hash, packages=packages)
    chain = cheapest_chain(home.registry.deltas(MODEL), source=known.installed_version or 0, target=latest.number)
    return choice, chain


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_no_device_notices_a_collection(home: Home, seed: int) -> None:
    draw = random.Random(seed)
    devices = [enrol(home, draw.choice([None, 1, 2, 3])) for _ in range(3)]
    for number in (4, 5):
        home.candidate(number + 10, parent=number - 1)
        home.publish(number)
        chosen = draw.choice(devices)
        if offer := offered(home, chosen)[0]:
            home.registry.record_offer(chosen.device_id, model=MODEL, version=number, package_path=offer.path)
    if draw.random() < 0.5:
        home.registry.revoke_device(devices.pop().device_id)
    before = [offered(home, device) for device in devices]
    shop = shop_of(home, keep_versions=draw.choice([1, 2]), grace_hours=0.0)
    would = collect(shop, dry_run=True)
    did = collect(shop)
    assert (would.packages, set(would.artifacts)) == (did.packages, set(did.artifacts))
    assert would.freed_bytes == did.freed_bytes
    assert [offered(home, device) for device in devices] == before
    for device in devices:
        for offer in home.registry.offers(device.device_id):
            target = home.registry.target(offer.package_path)
            assert target is not None
            assert home.artifacts.has(target.sha256)
    assert examine(shop) == ()
    assert collect(shop).packages == ()
    signed = home.metadata.signed_files()
    assert not [package for package in did.packages if package.path in signed or home.registry.target(package.path)]


def test_what_a_channel_offers_or_an_operator_forced_stays(home: Home) -> None:
    device = enrol(home, None)
    home.registry.withdraw(MODEL, 3, reason="too slow")
    home.registry.set_device_policy(device.device_id, forced_version=1)
    before = {number: home.registry.packages(MODEL, number) for number in (1, 2)}
    collect(shop_of(home, keep_versions=1, grace_hours=0.0))
    for number, packages in before.items():
        full = [package.path for package in packages if package.source_version is None]
        assert full
        assert set(full) <= {package.path for package in home.registry.packages(MODEL, number)}


def test_a_dry_run_changes_nothing(home: Home) -> None:
    leave_orphan(home)
    before = sorted(path for path in home.settings.home.rglob("*") if path.is_file() and "registry" not in path.name)
    would = collect(shop_of(home, keep_versions=1), dry_run=True)
    assert {package.path for package in would.packages} == {
        f"packages/{MODEL}/{name}.lmpkg" for name in ("1/full", "2/full", "2/from-1", "3/from-2")
    }
    after = sorted(path for path in home.settings.home.rglob("*") if path.is_file() and "registry" not in path.name)
    assert [path for path in after if path.name != ".gc.lock"] == [path for path in before if path.name != ".gc.lock"]


def test_a_collection_that_is_cut_off_is_finished_by_the_next(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = shop_of(home, keep_versions=1, grace_hours=0.0)

    def cut(self: object, paths: object) -> None:
        raise ServerError("cut")

    with monkeypatch.context() as patched:
        patched.setattr(SignedMetadata, "drop_packages", cut)
        with pytest.raises(ServerError, match="cut"):
            collect(shop)
    assert {finding.kind for finding in examine(shop)} == {"signed-leftover", "unnamed-artifact"}
    collect(shop)
    assert examine(shop) == ()


def test_a_collected_packages_row_survives_going_back_a_migration_only_without_it(home: Home) -> None:
    from server.registry.migrations import downgrade, upgrade

    collect(shop_of(home, keep_versions=1, grace_hours=0.0))
    with home.registry._connection() as connection:
        downgrade(connection, "0002")
        upgrade(connection)
    assert [package.path for package in home.registry.packages(MODEL, 3)] == [f"packages/{MODEL}/3/full.lmpkg"]
    assert home.registry.packages(MODEL, 2) == ()


def told(home: Home, *arguments: str, expect: int = 0) -> object:
    environment = {"LAMELLA_HOME": str(home.settings.home), "LAMELLA_OFFLINE_KEYS": str(home.folder / "offline-keys")}
    done = CliRunner(env=environment).invoke(app, [*arguments])
    assert done.exit_code == expect, done.output
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def test_the_commands_tell_and_mend(home: Home) -> None:
    assert told(home, "doctor", "--json") == []
    assert "fit together" in str(told(home, "doctor", "--quick"))
    leave_orphan(home)
    (found,) = told(home, "doctor", "--json", expect=1)
    assert (found["kind"], found["is_mendable"], found["is_mended"]) == ("unnamed-artifact", True, False)
    (mended,) = told(home, "doctor", "--mend", "--json")
    assert mended["is_mended"]
    lose_weights(home)
    assert "missing-artifact" in str(told(home, "doctor", "--mend", expect=1))
    would = told(home, "gc", "--dry-run", "--json")
    assert (would["dry_run"], would["packages"], would["freed_bytes"]) == (True, [], 0)
    assert "Removed 0 packages" in str(told(home, "gc"))
