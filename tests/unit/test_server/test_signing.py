import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from simulators.power_cut import Fuse, PowerCutError
from simulators.server_home import PASSPHRASE, Clock, init_trust, offline_keys
from simulators.tuf_client import folder_getter, updater_for
from tuf.api.exceptions import ExpiredMetadataError
from tuf.ngclient import Updater

from server.config import Settings
from server.errors import ConfigurationError, SigningError, TargetConflictError
from server.signing import KeyFolder, Lifetimes, NewTarget, SignedMetadata, initialise
from server.signing.documents import Chain, Documents
from server.signing.roles import bins_of, max_bytes

BINS = 4


@pytest.fixture
def settings(home_settings: Settings, tmp_path: Path, clock: Clock) -> Settings:
    init_trust(home_settings, offline_keys(tmp_path), bins=BINS, now=clock)
    return home_settings


@pytest.fixture
def metadata(settings: Settings, tmp_path: Path, clock: Clock) -> SignedMetadata:
    return SignedMetadata.open(settings, release_keys=offline_keys(tmp_path), now=clock)


def manifest(version: int, digest: str = "a", model: str = "m") -> NewTarget:
    return NewTarget(
        path=f"manifests/{model}/{version}.json", length=10, sha256=digest * 64, custom={"version": version}
    )


def package(version: int, name: str = "full", digest: str = "b", model: str = "m") -> NewTarget:
    path = f"packages/{model}/{version}/{name}.lmpkg"
    return NewTarget(path=path, length=20, sha256=digest * 64, custom={"version": version})


def add(metadata: SignedMetadata, version: int, *names: str) -> None:
    metadata.add_release(manifest=manifest(version), packages=[package(version, name) for name in names or ("full",)])


def device(settings: Settings, folder: Path, root: bytes, clock: Clock) -> Updater:
    updater = updater_for(folder_getter(settings.home / "metadata"), folder, root=root)
    _as_of(clock.time, updater)
    return updater


def _as_of(moment: datetime, updater: Updater) -> None:
    updater._trusted_set.reference_time = moment
    updater.refresh()


def names(settings: Settings) -> set[str]:
    return {path.name for path in (settings.home / "metadata").glob("*.json")}


def signed(settings: Settings, name: str) -> dict:
    return json.loads((settings.home / "metadata" / name).read_text())["signed"]


# --- the first keys


def test_offline_and_online_keys_lie_apart_and_only_their_owner_reads_them(settings: Settings, tmp_path: Path) -> None:
    for folder, roles in (
        (settings.home / "keys", ["deltas", "snapshot", "timestamp"]),
        (tmp_path / "offline-keys", ["releases", "root", "root", "root", "targets"]),
    ):
        assert folder.stat().st_mode & 0o777 == 0o700
        pems = sorted(folder.glob("*.pem"))
        assert [pem.name.partition("-")[0] for pem in pems] == roles
        assert {pem.stat().st_mode & 0o777 for pem in pems} == {0o600}
        is_encrypted = [b"ENCRYPTED" in pem.read_bytes() for pem in pems]
        assert is_encrypted == [folder.name == "offline-keys"] * len(pems)
    assert not [path for path in settings.home.rglob("*") if path.is_file() and b"ENCRYPTED" in path.read_bytes()]


def test_the_roles_are_as_designed(settings: Settings) -> None:
    root, targets = signed(settings, "1.root.json"), signed(settings, "1.targets.json")
    assert root["consistent_snapshot"]
    assert {name: (len(role["keyids"]), role["threshold"]) for name, role in root["roles"].items()} == {
        "root": (3, 2),
        "targets": (1, 1),
        "snapshot": (1, 1),
        "timestamp": (1, 1),
    }
    assert targets["targets"] == {}
    assert {role["name"]: (role["paths"], role["terminating"]) for role in targets["delegations"]["roles"]} == {
        "releases": (["manifests/*/*.json"], True),
        "packages": (["packages/*/*/*.lmpkg"], True),
    }
    bins = signed(settings, "1.packages.json")["delegations"]["succinct_roles"]
    assert (bins["bit_length"], bins["name_prefix"], bins["threshold"]) == (2, "deltas", 1)
    keyids = {
        *root["keys"],
        *(key for role in targets["delegations"]["roles"] for key in role["keyids"]),
        *bins["keyids"],
    }
    assert len(keyids) == 8  # three of root; targets, releases, deltas, snapshot, timestamp


def test_no_private_key_is_in_the_metadata(settings: Settings) -> None:
    for path in (settings.home / "metadata").iterdir():
        assert b"PRIVATE" not in path.read_bytes()


def test_trust_is_made_once_and_never_over_other_keys(settings: Settings, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in settings.home.rglob("*.*") if path.is_file()}
    with pytest.raises(ConfigurationError, match="never overwritten"):
        init_trust(settings, offline_keys(tmp_path))
    with pytest.raises(ConfigurationError, match="lamella trust show"):
        init_trust(settings, KeyFolder(tmp_path / "other"))
    assert before == {path: path.read_bytes() for path in settings.home.rglob("*.*") if path.is_file()}
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bins": 3}, "power of two"),
        ({"bins": 8192}, "power of two"),
        ({"root_keys": 2, "root_threshold": 3}, "cannot sign"),
        ({"root_threshold": 0}, "cannot sign"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_anything_is_made(
    home_settings: Settings, tmp_path: Path, options: dict[str, int], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        initialise(home_settings.home, offline_keys(tmp_path), lifetimes=Lifetimes.of(home_settings), **options)
    assert list(tmp_path.iterdir()) == []


def test_offline_keys_are_not_made_in_the_servers_home(home_settings: Settings) -> None:
    keys = KeyFolder(home_settings.home / "keys" / "offline", lambda: PASSPHRASE)
    with pytest.raises(ConfigurationError, match="lies in the server's home"):
        init_trust(home_settings, keys)


def test_a_short_passphrase_is_refused(home_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least 12"):
        init_trust(home_settings, KeyFolder(tmp_path / "offline", lambda: b"too short"))
    assert not list((tmp_path / "offline").glob("*"))


def test_an_init_that_is_cut_off_can_be_done_again(tmp_path: Path, clock: Clock) -> None:
    settings = Settings(home=tmp_path / "home")
    lifetimes = Lifetimes.of(settings)
    clean = Fuse()
    initialise(tmp_path / "clean", KeyFolder(tmp_path / "k"), lifetimes=lifetimes, bins=2, write=clean.write)
    assert clean.operations[-1] == "write timestamp.json"
    for cut_at in range(1, len(clean.operations) + 1):
        home, keys = tmp_path / f"home-{cut_at}", KeyFolder(tmp_path / f"keys-{cut_at}")
        with pytest.raises(PowerCutError):
            initialise(home, keys, lifetimes=lifetimes, bins=2, write=Fuse(cut_at).write)
        settings = Settings(home=home)
        with pytest.raises(ConfigurationError, match="lamella trust init"):
            SignedMetadata.open(settings)
        fresh = KeyFolder(tmp_path / f"fresh-{cut_at}")
        initialise(home, fresh, lifetimes=lifetimes, bins=2, now=clock)
        root = SignedMetadata.open(settings, now=clock).root_bytes()
        device(settings, tmp_path / f"device-{cut_at}", root, clock)
        assert len(list((home / "keys").glob("*.pem"))) == 3


# --- releases


def test_a_device_finds_what_was_signed(
    settings: Settings, metadata: SignedMetadata, tmp_path: Path, clock: Clock
) -> None:
    add(metadata, 1)
    add(metadata, 2, "full", "from-1")
    updater = device(settings, tmp_path / "device", metadata.root_bytes(), clock)
    for path in ("packages/m/1/full", "packages/m/2/full", "packages/m/2/from-1"):
        found = updater.get_targetinfo(f"{path}.lmpkg")
        assert found is not None
        assert (found.length, found.hashes) == (20, {"sha256": "b" * 64})
    found = updater.get_targetinfo("manifests/m/2.json")
    assert found is not None
    assert found.custom == {"version": 2}
    assert updater.get_targetinfo("packages/m/3/full.lmpkg") is None
    assert updater.get_targetinfo("manifests/m/3.json") is None


def test_only_what_changed_is_signed_again(settings: Settings, metadata: SignedMetadata) -> None:
    before = names(settings)
    bins = bins_of(Chain(Documents(settings.home / "metadata", lambda *_: None)).packages.signed)
    changed = bins.get_role_for_target("packages/m/1/full.lmpkg")
    add(metadata, 1)
    assert names(settings) - before == {f"2.{changed}.json", "2.releases.json", "2.snapshot.json"}


def test_what_is_signed_never_changes(settings: Settings, metadata: SignedMetadata) -> None:
    add(metadata, 1)
    before = {path.name: path.read_bytes() for path in (settings.home / "metadata").iterdir()}
    add(metadata, 1)
    with pytest.raises(TargetConflictError, match="never changes"):
        metadata.add_release(manifest=manifest(2), packages=[package(2), package(1, digest="c")])
    with pytest.raises(TargetConflictError, match="never changes"):
        metadata.add_release(manifest=manifest(1, "c"), packages=[])
    assert before == {path.name: path.read_bytes() for path in (settings.home / "metadata").iterdir()}


def test_only_the_newest_versions_of_a_model_stay_signed(settings: Settings, tmp_path: Path, clock: Clock) -> None:
    metadata = SignedMetadata(
        settings.home,
        lifetimes=Lifetimes.of(settings),
        signed_versions=2,
        release_keys=offline_keys(tmp_path),
        now=clock,
    )
    metadata.add_release(manifest=manifest(1, model="other"), packages=[package(1, model="other")])
    # 9 and 10: by number, not by name.
    for version in (8, 9, 10):
        add(metadata, version, "full", *(f"from-{source}" for source in range(1, 8)))
    updater = device(settings, tmp_path / "device", metadata.root_bytes(), clock)
    assert {
        path
        for path in ("m/8", "m/9", "m/10", "other/1")
        if updater.get_targetinfo(f"manifests/{path}.json") is not None
    } == {"m/9", "m/10", "other/1"}
    assert updater.get_targetinfo("packages/m/9/full.lmpkg")
    assert updater.get_targetinfo("packages/other/1/full.lmpkg")
    # A bin that is signed again loses what is retired.
    clock.advance(days=20)
    metadata.refresh()
    updater = device(settings, tmp_path / "device", metadata.root_bytes(), clock)
    assert updater.get_targetinfo("packages/m/9/full.lmpkg")
    assert updater.get_targetinfo("packages/m/8/full.lmpkg") is None


def test_a_document_that_devices_could_not_read_is_not_signed(
    settings: Settings, metadata: SignedMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (max_bytes("releases"), max_bytes("deltas-00"), max_bytes("snapshot")) == (5_000_000, 5_000_000, 2_000_000)
    monkeypatch.setattr("server.signing.documents.max_bytes", lambda document: 600 if document == "releases" else 9999)
    add(metadata, 1)
    before = names(settings)
    with pytest.raises(SigningError, match=r"releases metadata would have \d+ bytes.*LAMELLA_SIGNED_VERSIONS"):
        add(metadata, 2)
    assert names(settings) == before


def test_who_has_no_releases_key_signs_no_version(settings: Settings, tmp_path: Path, clock: Clock) -> None:
    before = names(settings)
    service = SignedMetadata.open(settings, now=clock)
    with pytest.raises(ConfigurationError, match="no releases key"):
        add(service, 1)
    for path in (tmp_path / "offline-keys").glob("releases-*"):
        path.unlink()
    publisher = SignedMetadata.open(settings, release_keys=offline_keys(tmp_path), now=clock)
    for attempt in (publisher.unlock_releases, lambda: add(publisher, 1)):
        with pytest.raises(SigningError, match="lamella trust rotate releases"):
            attempt()
    assert names(settings) == before


def test_a_wrong_passphrase_is_told_before_any_work(settings: Settings, tmp_path: Path, clock: Clock) -> None:
    wrong = KeyFolder(tmp_path / "offline-keys", lambda: b"not the right passphrase")
    with pytest.raises(ConfigurationError, match="passphrase is wrong"):
        SignedMetadata.open(settings, release_keys=wrong, now=clock).unlock_releases()


# --- expiry


def test_the_service_renews_what_online_keys_can_renew(
    settings: Settings, metadata: SignedMetadata, clock: Clock, tmp_path: Path
) -> None:
    first = names(settings)
    assert not metadata.refresh()
    clock.advance(hours=25)
    assert metadata.refresh()
    assert not metadata.refresh()
    assert names(settings) == first
    clock.advance(days=8)
    assert metadata.refresh()
    assert names(settings) - first == {"2.snapshot.json"}
    clock.advance(days=10)
    assert metadata.refresh()
    assert names(settings) - first == {
        "2.snapshot.json",
        "3.snapshot.json",
        *(f"2.deltas-{number}.json" for number in range(BINS)),
    }
    clock.advance(days=100)
    metadata.refresh()
    device(settings, tmp_path / "device", metadata.root_bytes(), clock)
    assert not any(name.startswith(("2.root", "2.targets", "2.packages", "2.releases")) for name in names(settings))


def test_what_only_offline_keys_can_renew_is_warned_of(metadata: SignedMetadata, clock: Clock) -> None:
    assert metadata.warnings(30) == ()
    clock.advance(days=160)
    assert [text.split()[1] for text in metadata.warnings(30)] == ["releases"]
    clock.advance(days=200)
    assert [text.split()[1] for text in metadata.warnings(30)] == ["root", "targets", "packages", "releases"]
    assert "expired" in metadata.warnings(30)[-1]
    assert metadata.expires_at() < clock()


def test_a_device_does_not_believe_expired_metadata(
    settings: Settings, metadata: SignedMetadata, clock: Clock, tmp_path: Path
) -> None:
    clock.advance(hours=49)
    with pytest.raises(ExpiredMetadataError):
        device(settings, tmp_path / "device", metadata.root_bytes(), clock)


# --- what is handed out


@pytest.mark.parametrize(
    "name",
    ["timestamp.json", "1.root.json", "1.targets.json", "1.snapshot.json", "1.releases.json", "1.deltas-3.json"],
)
def test_only_metadata_is_handed_out(settings: Settings, metadata: SignedMetadata, name: str) -> None:
    assert metadata.document(name) == settings.home / "metadata" / name


@pytest.mark.parametrize(
    "name",
    [
        *("2.root.json", "../keys/root.pem", "root.json", "1.root.json/", "01.root.json", "1.timestamp.json", "", "."),
        *("1.deltas-.json", "1.deltas-4.json", "1.deltas-../1.root.json", "1.other.json"),
    ],
)
def test_anything_else_is_not(metadata: SignedMetadata, name: str) -> None:
    assert metadata.document(name) is None


# --- damage


@pytest.mark.parametrize("name", ["1.targets.json", "1.releases.json", "1.packages.json", "1.snapshot.json"])
def test_damaged_metadata_is_never_signed_again(settings: Settings, metadata: SignedMetadata, name: str) -> None:
    path = settings.home / "metadata" / name
    changed = json.loads(path.read_text())
    changed["signed"]["expires"] = "2099-01-01T00:00:00Z"
    path.write_text(json.dumps(changed))
    with pytest.raises(SigningError, match=rf"{name} is damaged or not signed".replace(".", r"\.")):
        add(metadata, 1)
    path.write_text("{")
    with pytest.raises(SigningError, match="damaged"):
        metadata.expires_at()


def test_a_damaged_bin_is_never_signed_again(settings: Settings, metadata: SignedMetadata) -> None:
    for path in (settings.home / "metadata").glob("1.deltas-*.json"):
        path.write_text(path.read_text().replace('"version":1', '"version":1 '))
        changed = json.loads(path.read_text())
        changed["signed"]["targets"] = {"packages/m/1/evil.lmpkg": {"hashes": {"sha256": "0" * 64}, "length": 1}}
        path.write_text(json.dumps(changed))
    with pytest.raises(SigningError, match=r"deltas-\d\.json is damaged or not signed"):
        add(metadata, 1)


def test_lost_keys_are_not_quietly_replaced(settings: Settings, metadata: SignedMetadata, clock: Clock) -> None:
    for path in (settings.home / "keys").glob("timestamp-*"):
        path.unlink()
    clock.advance(hours=47)
    with pytest.raises(SigningError, match=r"has not the keys to sign timestamp.*lamella trust rotate timestamp"):
        SignedMetadata.open(settings, now=clock)


def test_lost_metadata_does_not_start_over(settings: Settings, metadata: SignedMetadata, tmp_path: Path) -> None:
    add(metadata, 1)
    (settings.home / "metadata" / "timestamp.json").unlink()
    with pytest.raises(ConfigurationError, match="backup"):
        SignedMetadata.open(settings)
    with pytest.raises(ConfigurationError, match="backup"):
        init_trust(settings, KeyFolder(tmp_path / "other"))


def test_a_key_that_others_can_read_is_refused(settings: Settings, clock: Clock) -> None:
    next((settings.home / "keys").glob("timestamp-*.pem")).chmod(0o640)
    clock.advance(hours=47)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        SignedMetadata.open(settings, now=clock)


@pytest.mark.parametrize("content", ["no key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n"])
def test_a_file_that_is_no_key_is_refused(settings: Settings, clock: Clock, content: str) -> None:
    next((settings.home / "keys").glob("timestamp-*.pem")).write_text(content)
    clock.advance(hours=47)
    with pytest.raises(ConfigurationError, match=r"does not open|is encrypted"):
        SignedMetadata.open(settings, now=clock)


def test_halves_of_different_keys_are_refused(settings: Settings, clock: Clock) -> None:
    keys = settings.home / "keys"
    timestamp, snapshot = next(keys.glob("timestamp-*.pem")), next(keys.glob("snapshot-*.pem"))
    timestamp.write_bytes(snapshot.read_bytes())
    clock.advance(hours=47)
    with pytest.raises(ConfigurationError, match="not halves of one key"):
        SignedMetadata.open(settings, now=clock)


# --- many writers, and cuts


def test_many_writers_lose_nothing(settings: Settings, metadata: SignedMetadata, tmp_path: Path, clock: Clock) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: add(metadata, number), range(1, 9)))
    updater = device(settings, tmp_path / "device", metadata.root_bytes(), clock)
    assert all(updater.get_targetinfo(f"packages/m/{number}/full.lmpkg") for number in range(1, 9))


def _fused(settings: Settings, tmp_path: Path, clock: Clock, fuse: Fuse) -> SignedMetadata:
    return SignedMetadata(
        settings.home,
        lifetimes=Lifetimes.of(settings),
        release_keys=offline_keys(tmp_path),
        now=clock,
        write=fuse.write,
    )


def test_a_cut_at_any_write_leaves_devices_with_the_old_or_the_new(
    settings: Settings, metadata: SignedMetadata, clock: Clock, tmp_path: Path
) -> None:
    add(metadata, 1)
    root = metadata.root_bytes()
    clean = Fuse()
    add(_fused(settings, tmp_path, clock, clean), 2)
    assert len(clean.operations) == 4  # releases, one bin
    assert clean.operations[-2:] == ["write 3.snapshot.json", "write timestamp.json"]
    for cut_at in range(1, len(clean.operations) + 1):
        version = 2 + cut_at
        with pytest.raises(PowerCutError):
            add(_fused(settings, tmp_path, clock, Fuse(cut_at)), version)
        updater = device(settings, tmp_path / f"device-{cut_at}", root, clock)
        assert updater.get_targetinfo("packages/m/1/full.lmpkg")
        assert updater.get_targetinfo(f"packages/m/{version}/full.lmpkg") is None
        assert updater.get_targetinfo(f"manifests/m/{version}.json") is None
        add(metadata, version)
        later = device(settings, tmp_path / f"device-{cut_at}", root, clock)
        assert later.get_targetinfo(f"packages/m/{version}/full.lmpkg")
        assert later.get_targetinfo(f"manifests/m/{version}.json")
