import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from simulators.power_cut import Fuse, PowerCutError
from simulators.server_home import Clock
from simulators.tuf_client import folder_getter, updater_for
from tuf.api.exceptions import ExpiredMetadataError
from tuf.api.metadata import Metadata
from tuf.ngclient import Updater

from server.config import Settings
from server.errors import ConfigurationError, SigningError, StorageError, TargetConflictError
from server.signing import ROLES, NewTarget, SignedMetadata


@pytest.fixture
def settings(home_settings: Settings) -> Settings:
    return home_settings


@pytest.fixture
def metadata(settings: Settings) -> SignedMetadata:
    return SignedMetadata.open(settings)


def target(name: str, digest: str = "a") -> NewTarget:
    return NewTarget(path=f"packages/{name}", length=10, sha256=digest * 64, custom={"version": 3})


def device(settings: Settings, folder: Path, root: bytes) -> Updater:
    return updater_for(folder_getter(settings.home / "metadata"), folder, root=root)


def names(settings: Settings) -> set[str]:
    return {path.name for path in (settings.home / "metadata").glob("*.json")}


def test_the_first_start_makes_a_key_for_each_role_that_only_the_owner_reads(
    settings: Settings, metadata: SignedMetadata
) -> None:
    keys = settings.home / "keys"
    assert keys.stat().st_mode & 0o777 == 0o700
    pems = [(keys / f"{role}.pem") for role in ROLES]
    assert {pem.stat().st_mode & 0o777 for pem in pems} == {0o600}
    assert len({pem.read_bytes() for pem in pems}) == 4
    root = json.loads(metadata.root_bytes())["signed"]
    assert root["consistent_snapshot"]
    assert {role: len(entry["keyids"]) for role, entry in root["roles"].items()} == dict.fromkeys(ROLES, 1)
    assert {key["keytype"] for key in root["keys"].values()} == {"ed25519"}
    assert names(settings) == {"1.root.json", "1.targets.json", "1.snapshot.json", "timestamp.json"}


def test_no_private_key_is_in_the_metadata(settings: Settings, metadata: SignedMetadata) -> None:
    for path in (settings.home / "metadata").iterdir():
        assert b"PRIVATE" not in path.read_bytes()


def test_opening_again_changes_nothing(settings: Settings, metadata: SignedMetadata) -> None:
    before = {path: path.read_bytes() for path in (settings.home / "metadata").iterdir()}
    again = SignedMetadata.open(settings)
    assert again.root_bytes() == metadata.root_bytes()
    assert before == {path: path.read_bytes() for path in (settings.home / "metadata").iterdir()}


def test_a_device_finds_what_was_signed(settings: Settings, metadata: SignedMetadata, tmp_path: Path) -> None:
    metadata.add_targets([target("a"), target("b", "b")])
    metadata.add_targets([target("c", "c")])
    updater = device(settings, tmp_path / "device", metadata.root_bytes())
    for name in "abc":
        found = updater.get_targetinfo(f"packages/{name}")
        assert found is not None
        assert (found.length, found.hashes, found.custom) == (10, {"sha256": name * 64}, {"version": 3})
    assert updater.get_targetinfo("packages/d") is None
    assert {"3.targets.json", "3.snapshot.json"} <= names(settings)


def test_what_is_signed_never_changes(settings: Settings, metadata: SignedMetadata) -> None:
    metadata.add_targets([target("a")])
    before = names(settings)
    metadata.add_targets([target("a")])
    with pytest.raises(TargetConflictError, match="never changes"):
        metadata.add_targets([target("new"), target("a", "b")])
    assert names(settings) == before


def test_metadata_is_renewed_when_half_of_its_lifetime_is_over(
    settings: Settings, clock: Clock, tmp_path: Path
) -> None:
    metadata = SignedMetadata.open(settings, now=clock)
    first_root = metadata.root_bytes()
    assert not metadata.refresh_timestamp()
    clock.advance(hours=25)
    assert metadata.refresh_timestamp()
    assert not metadata.refresh_timestamp()
    assert "2.snapshot.json" not in names(settings)
    clock.advance(days=8)
    assert metadata.refresh_timestamp()
    assert {"2.snapshot.json"} <= names(settings)
    assert "2.targets.json" not in names(settings)
    clock.advance(days=200)
    assert metadata.refresh_timestamp()
    assert {"2.root.json", "2.targets.json", "3.snapshot.json"} <= names(settings)
    assert metadata.expires_at() > clock()
    # A device that pinned the first root walks to the second.
    assert first_root != metadata.root_bytes()
    _as_of(clock.time, device(settings, tmp_path / "device", first_root))


def _as_of(moment: datetime, updater: Updater) -> None:
    updater._trusted_set.reference_time = moment
    updater.refresh()


def test_starting_after_a_long_time_renews_everything(settings: Settings, clock: Clock, tmp_path: Path) -> None:
    metadata = SignedMetadata.open(settings, now=clock)
    root = metadata.root_bytes()
    clock.advance(days=1000)
    assert metadata.expires_at() < clock()
    SignedMetadata.open(settings, now=clock)
    assert metadata.expires_at() > clock()
    _as_of(clock.time, device(settings, tmp_path / "device", root))


def test_a_device_does_not_believe_expired_metadata(settings: Settings, clock: Clock, tmp_path: Path) -> None:
    metadata = SignedMetadata.open(settings, now=clock)
    clock.advance(hours=49)
    with pytest.raises(ExpiredMetadataError):
        _as_of(clock.time, device(settings, tmp_path / "device", metadata.root_bytes()))


@pytest.mark.parametrize("name", ["timestamp.json", "1.root.json", "1.targets.json", "1.snapshot.json"])
def test_only_metadata_is_handed_out(settings: Settings, metadata: SignedMetadata, name: str) -> None:
    assert metadata.document(name) == settings.home / "metadata" / name


@pytest.mark.parametrize(
    "name",
    ["2.root.json", "../keys/root.pem", "root.json", "1.root.json/", "01.root.json", "1.timestamp.json", "", "."],
)
def test_anything_else_is_not(metadata: SignedMetadata, name: str) -> None:
    assert metadata.document(name) is None


def test_damaged_metadata_is_never_signed_again(settings: Settings, metadata: SignedMetadata) -> None:
    path = settings.home / "metadata" / "1.targets.json"
    changed = json.loads(path.read_text())
    changed["signed"]["targets"] = {"packages/evil": {"hashes": {"sha256": "0" * 64}, "length": 1}}
    path.write_text(json.dumps(changed))
    with pytest.raises(SigningError, match=r"1\.targets\.json is damaged or not signed"):
        metadata.add_targets([target("a")])
    path.write_text("{")
    with pytest.raises(SigningError, match="damaged"):
        metadata.expires_at()


def test_lost_keys_are_not_quietly_replaced(settings: Settings, metadata: SignedMetadata) -> None:
    (settings.home / "keys" / "targets.pem").unlink()
    with pytest.raises(StorageError, match=r"targets\.pem"):
        SignedMetadata.open(settings)


def test_lost_metadata_does_not_start_over(settings: Settings, metadata: SignedMetadata) -> None:
    metadata.add_targets([target("a")])
    (settings.home / "metadata" / "timestamp.json").unlink()
    with pytest.raises(SigningError, match="backup"):
        SignedMetadata.open(settings)


def test_a_key_that_others_can_read_is_refused(settings: Settings, metadata: SignedMetadata) -> None:
    (settings.home / "keys" / "root.pem").chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        SignedMetadata.open(settings)


def test_a_file_that_is_no_key_is_refused(settings: Settings, metadata: SignedMetadata) -> None:
    (settings.home / "keys" / "root.pem").write_text("no key")
    with pytest.raises(ConfigurationError, match="PEM"):
        SignedMetadata.open(settings)


def test_many_writers_lose_nothing(settings: Settings, metadata: SignedMetadata, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: metadata.add_targets([target(f"t{number}")]), range(8)))
    updater = device(settings, tmp_path / "device", metadata.root_bytes())
    assert all(updater.get_targetinfo(f"packages/t{number}") for number in range(8))


def _open(settings: Settings, roots: "multiprocessing.Queue[bytes]") -> None:
    roots.put(SignedMetadata.open(settings).root_bytes())


def test_processes_that_start_at_once_make_one_root(settings: Settings) -> None:
    context = multiprocessing.get_context("fork")
    roots = context.Queue()
    processes = [context.Process(target=_open, args=(settings, roots)) for _ in range(3)]
    for process in processes:
        process.start()
    assert len({roots.get(timeout=30) for _ in processes}) == 1
    for process in processes:
        process.join()


def _fused(settings: Settings, clock: Clock, fuse: Fuse) -> SignedMetadata:
    plain = SignedMetadata.open(settings, now=clock) if (settings.home / "metadata").exists() else None
    lifetimes = plain._lifetimes if plain else SignedMetadata.open(settings, now=clock)._lifetimes
    return SignedMetadata(settings.home, lifetimes=lifetimes, now=clock, write=fuse.write)


def test_a_cut_at_any_write_leaves_devices_with_the_old_or_the_new(
    settings: Settings, clock: Clock, tmp_path: Path
) -> None:
    metadata = SignedMetadata.open(settings, now=clock)
    metadata.add_targets([target("old")])
    root = metadata.root_bytes()
    clean = Fuse()
    _fused(settings, clock, clean).add_targets([target("new-0")])
    assert clean.operations == ["write 3.targets.json", "write 3.snapshot.json", "write timestamp.json"]
    for cut_at in (1, 2, 3):
        with pytest.raises(PowerCutError):
            _fused(settings, clock, Fuse(cut_at)).add_targets([target(f"new-{cut_at}")])
        updater = device(settings, tmp_path / f"device-{cut_at}", root)
        _as_of(clock.time, updater)
        assert updater.get_targetinfo("packages/old")
        assert updater.get_targetinfo(f"packages/new-{cut_at}") is None
        SignedMetadata.open(settings, now=clock).add_targets([target(f"new-{cut_at}")])
        later = device(settings, tmp_path / f"device-{cut_at}", root)
        _as_of(clock.time, later)
        assert later.get_targetinfo(f"packages/new-{cut_at}")


def test_a_first_start_that_is_cut_off_is_finished_by_the_next(tmp_path: Path, clock: Clock) -> None:
    lifetimes = SignedMetadata.open(Settings(home=tmp_path / "other"), now=clock)._lifetimes
    for cut_at in range(1, 5):
        settings = Settings(home=tmp_path / f"home-{cut_at}")
        settings.home.mkdir()
        cut = SignedMetadata(settings.home, lifetimes=lifetimes, now=clock, write=Fuse(cut_at).write)
        with pytest.raises(PowerCutError):
            cut.start()
        metadata = SignedMetadata.open(settings, now=clock)
        updater = device(settings, tmp_path / f"device-{cut_at}", metadata.root_bytes())
        _as_of(clock.time, updater)
        assert Metadata.from_bytes(metadata.root_bytes()).signed.version == 1
