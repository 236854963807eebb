"""The attacks of the TUF specification (section 1.5.2) and those on models and packages, against a server that lies.

Each test says what the device answers, and that its old version still serves with nothing half-written. Key compromise
has a file of its own: test_attacks_on_keys.py. The table in docs/updates.md names these tests.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file
from simulators.fake_trust import FakeTrust, an_hour_ago
from simulators.update_service import FakeUpdateService, Lie
from simulators.versions import manifest_of, write_tree
from simulators.victim import V1, V2, Victim
from tuf.api.metadata import Metadata

from client_sdk import (
    Device,
    EnrolmentError,
    Limits,
    MetadataError,
    OfferRefusedError,
    PackageError,
    ServiceRefusedError,
    ServiceUnavailableError,
)
from client_sdk.metadata import checked_root
from client_sdk.pace import SystemClock
from delta_updates import Offer, build_package

MIB = 1 << 20


@pytest.fixture
def victim(service: FakeUpdateService, open_device: Callable[..., Device], tmp_path: Path) -> Victim:
    victim = Victim(service, open_device, tmp_path)
    victim.prepare()
    return victim


def altered(victim: Victim, **changes: object) -> None:
    """The service offers v2, with some facts of the offer changed."""
    victim.service.on_offer = lambda offer: offer.model_copy(update=changes)


# --- the attacks of the TUF specification


def test_arbitrary_installation(victim: Victim, tmp_path: Path) -> None:
    """Bytes of a stranger, under the right name: in the package, in the manifest, in all of the metadata."""
    service = victim.service
    evil = FakeUpdateService(tmp_path / "evil")
    evil.publish(write_tree(tmp_path / "evil-tree", base_seed=66), version=V2)
    length = service.published[V2].packages[V1].length
    service.lies = {"/v1/targets/packages/": Lie(body=os.urandom(length))}
    victim.refuses(PackageError, "announces|signed sha256")
    service.lies = {"/v1/targets/manifests/": Lie(body=evil.files["manifests/tiny/2.json"])}
    victim.refuses(MetadataError, "not what was signed")
    service.lies = {}
    service.metadata = evil.metadata
    victim.refuses(MetadataError, "does not verify")
    victim.recovers()


@pytest.mark.parametrize(
    ("path", "bound"),
    [
        ("/v1/metadata/2.root", 512_000),
        ("/v1/metadata/timestamp", 16_384),
        ("/v1/metadata/4.snapshot", 4_000),
        ("/v1/metadata/4.targets", 4_000),
        ("/v1/metadata/4.releases", 4_000),
        ("/v1/metadata/4.deltas-", 5_000_000),
        ("/v1/targets/manifests/", 4_000),
        ("/v1/targets/packages/", 40_000),
        ("/v1/updates/check", 1 << 16),
    ],
)
def test_endless_data(victim: Victim, path: str, bound: int) -> None:
    """A file without an end, at every place where one is read."""
    service = victim.service
    if path == "/v1/updates/check":
        service.answers = [b"x" * MIB]
    else:
        service.lies = {path: Lie(body=b"x" * 65_536, is_endless=True)}
    victim.refuses((MetadataError, PackageError, ServiceRefusedError), "larger than|sends more than")
    # Beside the bound, what lay in the buffers of both ends of the socket.
    assert service.lied_bytes < bound + 8 * MIB
    assert sum(f.stat().st_size for f in (victim.folder / "home").rglob("*") if f.is_file()) < 2 * MIB
    victim.recovers()


def test_extraneous_dependencies(victim: Victim, tmp_path: Path) -> None:
    """More than the version that was asked for: another model's package, one more file, one more thing to install."""
    service = victim.service
    extra = write_tree(tmp_path / "evil-extra", base_seed=1, adapter_seed=2)
    (extra / "base" / "plugin.json").write_text("{}")
    build_package(None, extra, tmp_path / "evil.lmpkg")
    thief = service.trust.stolen("deltas", "snapshot", "timestamp")
    path = f"packages/tiny/{V2}/full.lmpkg"
    raw = (tmp_path / "evil.lmpkg").read_bytes()
    honest = service.files[path]
    service.files[path] = raw
    thief.add_target(path, raw, {})
    thief.sign(without=("targets", "packages", "releases"))
    service.metadata = thief.metadata
    signed = thief.list_for(path).targets[path]
    ref = (
        service.published[V2]
        .packages[None]
        .model_copy(update={"length": signed.length, "sha256": signed.hashes["sha256"]})
    )
    altered(victim, package=ref)
    victim.refuses(PackageError, "cannot be applied")
    service.files[path] = honest
    altered(victim, model="other", manifest_path="manifests/other/2.json")
    victim.refuses(OfferRefusedError, "this device runs 'tiny'")
    service.answers = [json.dumps(json.loads(service.offer(V2).model_dump_json()) | {"requires": ["other"]}).encode()]
    victim.refuses(ServiceRefusedError, "not a valid Offer")
    # The thief's numbers are ahead of the service's; see test_fast_forward for the way out.
    service.trust.rotate("deltas", "snapshot", "timestamp")
    service.trust.sign()
    victim.recovers()


def test_fast_forward_and_its_recovery(victim: Victim) -> None:
    """A thief of the online keys numbers everything so high that nothing true is ever newer."""
    service = victim.service
    thief = service.trust.stolen("deltas", "snapshot", "timestamp")
    for signed in (*thief.bins.values(), thief.snapshot, thief.timestamp):
        signed.version = 2**31
    thief.sign(without=("targets", "packages", "releases"))
    service.metadata = thief.metadata
    service.answers = [service.offer(V2)]
    victim.open_device().check()
    service.metadata = service.trust.metadata
    service.sign()
    victim.refuses(MetadataError, "must be >=|older")
    service.trust.rotate("deltas", "snapshot", "timestamp")
    service.sign()
    victim.recovers()


def test_indefinite_freeze(victim: Victim) -> None:
    """The same old metadata for ever: believed until it expires, and not a moment longer."""
    service = victim.service
    # What the service gave out before there was a v2.
    service.metadata = victim.before_v2
    service.answers = [204, 204]
    assert victim.open_device().update().decision == "up_to_date"
    service.trust.sign(expires=an_hour_ago())
    service.metadata = service.trust.metadata
    service.answers = [204]
    victim.refuses(MetadataError, r"expired.*clock")
    service.trust.sign()
    victim.recovers()


def test_malicious_mirrors(victim: Victim, tmp_path: Path) -> None:
    """One that has nothing, one that sends elsewhere, one that answers with a page: and then an honest one."""
    service = victim.service
    service.lies = {"/v1/targets/": Lie(status=404, body=b"no such thing")}
    victim.refuses(ServiceRefusedError, "404")
    with FakeUpdateService(tmp_path / "evil").running() as evil:
        for path in ("/v1/metadata/", "/v1/targets/"):
            service.lies = {path: Lie(status=302, headers={"Location": f"{evil.address}/stolen"})}
            victim.refuses((ServiceRefusedError, MetadataError), "redirect")
        assert evil.requests == []  # neither followed nor told the credential
    service.lies = {"/v1/": Lie(body=b"<html>log in</html>", headers={"Content-Type": "text/html"})}
    victim.refuses(ServiceUnavailableError, "captive portal")
    victim.recovers()


def test_mix_and_match(victim: Victim) -> None:
    """Pieces of two states that were each true once, but never together."""
    service, new = victim.service, dict(victim.service.metadata)
    old_snapshot = max(name for name in victim.before_v2 if name.endswith("snapshot.json"))
    new_snapshot = max(name for name in new if name.endswith("snapshot.json"))
    number, before = (name.partition(".")[0] for name in (new_snapshot, old_snapshot))
    cache, kept = victim.folder / "home" / "trust", victim.folder / "evil-kept"
    shutil.copytree(cache, kept, symlinks=True)
    asked = next(
        name
        for name, signed in service.trust.bins.items()
        if signed is service.trust.list_for(service.published[V2].packages[V1].path)
    )
    for document in ("snapshot", "targets", "packages", "releases", asked):
        service.metadata = new | {f"{number}.{document}.json": new[f"{before}.{document}.json"]}
        victim.refuses(MetadataError, "does not verify")
        shutil.rmtree(cache)  # what is cached is not asked for again
        shutil.copytree(kept, cache, symlinks=True)
    service.metadata = new
    # Manifest of v2 with the package of v1, and v2's name for v1's bytes.
    altered(victim, package=service.published[V1].packages[None])
    victim.refuses(OfferRefusedError, "points at")
    ref = service.published[V1].packages[None].model_copy(update={"path": service.published[V2].packages[None].path})
    altered(victim, package=ref)
    victim.refuses(OfferRefusedError, "contradicts what is signed")
    victim.recovers()


def test_rollback_of_metadata(victim: Victim) -> None:
    """Older metadata, still well signed: with the device's cache there, and after it was lost."""
    service = victim.service
    service.on_offer = lambda _offer: service.offer(V1)
    assert victim.open_device().check() is None  # has seen the metadata of v2
    service.metadata = victim.before_v2
    victim.refuses(MetadataError, "does not verify")
    for path in (victim.folder / "home" / "trust").iterdir():
        if path.name != "pinned_root":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    victim.refuses(MetadataError, "older .* than what this device has seen")
    victim.recovers()


def test_rollback_of_the_version(victim: Victim) -> None:
    """An older version, still signed: with all memory there, and after the loss of either copy of the counter."""
    service, home = victim.service, victim.folder / "home"
    victim.recovers()
    for lost in ("", "slots/active.json", "slots", "state.json"):
        kept = victim.folder / "evil-kept"
        shutil.copytree(home, kept, symlinks=True)
        if lost:
            shutil.rmtree(home / lost) if (home / lost).is_dir() else (home / lost).unlink()
        service.answers = [service.offer(V1)]
        with pytest.raises(OfferRefusedError, match="older than v2"):
            victim.open_device().update()
        shutil.rmtree(home)
        kept.rename(home)
        victim.require_unharmed(V2)


def slow(victim: Victim) -> Device:
    """The device with a real clock and short patience."""
    limits = Limits(
        read_timeout_s=0.4,
        request_deadline_s=0.6,
        attempts=1,
        rate_window_s=0.5,
        min_rate_bytes_per_s=1000,
        download_deadline_s=2.0,
    )
    return Device(victim.folder / "home", limits=limits, clock=SystemClock(), test_version=lambda _t, _m: None)


@pytest.mark.parametrize(
    "path", ["/v1/metadata/timestamp", "/v1/metadata/4.snapshot", "/v1/targets/manifests/", "/v1/targets/packages/"]
)
@pytest.mark.parametrize("part", ["byte", "header", "chunk"])
def test_slow_retrieval(victim: Victim, path: str, part: str) -> None:
    """A byte now and then, for ever: each resets the time-out of the socket, so only a deadline ends it."""
    service = victim.service
    length = service.published[V2].packages[V1].length
    service.lies = {path: Lie(body=b"x" * length, **{f"{part}_pause_s": 0.05})}
    started = datetime.now(UTC)
    with pytest.raises(ServiceUnavailableError):
        slow(victim).update()
    assert datetime.now(UTC) - started < timedelta(seconds=5)
    victim.require_unharmed()
    victim.recovers()


def test_wrong_software(victim: Victim, tmp_path: Path) -> None:
    """Well signed, but not what this device asked for: another model's manifest or package in its place."""
    service = victim.service
    other = manifest_of(write_tree(tmp_path / "evil-other", base_seed=5), version=V2, model="other")
    service.add_target("manifests/other/2.json", other.to_bytes(), {})
    service.sign()
    altered(victim, manifest_path="manifests/other/2.json")
    victim.refuses(OfferRefusedError, "points at")
    service.lies = {"/v1/targets/manifests/": Lie(body=other.to_bytes())}
    altered(victim)
    victim.refuses(MetadataError, "larger than|not what was signed|refused")
    # Signed by mistake under our path: it still says whose it is.
    service.lies = {}
    service.add_target("manifests/tiny/2.json", other.to_bytes(), {})
    service.sign()
    altered(victim, tree_hash=other.tree_hash)
    victim.refuses(OfferRefusedError, "contradicts what is signed: model")
    service.add_target("manifests/tiny/2.json", manifest_of(victim.folder / "v2", version=V2).to_bytes(), {})
    service.sign()
    victim.recovers()


# --- attacks on models and packages


def test_wrong_base(victim: Victim, tmp_path: Path) -> None:
    """A signed delta that says `from v1` but was made from something else under the same number."""
    service = victim.service
    stranger = write_tree(tmp_path / "evil-base", base_seed=77)
    build_package(stranger, victim.folder / "v2", tmp_path / "evil.lmpkg")
    ref = service.published[V2].packages[V1]
    raw = (tmp_path / "evil.lmpkg").read_bytes()
    service.add_target(ref.path, raw, {})
    service.sign()
    signed = service.trust.list_for(ref.path).targets[ref.path]
    service.published[V2].packages[V1] = ref.model_copy(update={"length": len(raw), "sha256": signed.hashes["sha256"]})
    service.answers = [service.offer(V2, source=V1), 204]
    victim.refuses(PackageError, "cannot be applied")
    victim.recovers()  # by the full package


def test_replayed_offer(victim: Victim) -> None:
    """An offer is not bound to a device: another's, or one of last week, must do no harm."""
    service = victim.service
    service.publish(write_tree(victim.folder / "evil-v3", base_seed=3), version=3, deltas_from=(V2,))
    service.answers = [service.offer(3, source=V2)]
    victim.refuses(OfferRefusedError, "a delta from v2 to v3.*but this device has v1")
    service.answers = [service.offer(3)]
    assert victim.open_device().update().to_version == 3
    service.answers = [service.offer(V2, source=V1)]
    with pytest.raises(OfferRefusedError, match="older than v3"):
        victim.open_device().update()
    victim.require_unharmed(3)


def test_package_bomb(victim: Victim, tmp_path: Path) -> None:
    """A few kilobytes that unpack to hundreds of megabytes, signed by a thief of the online keys."""
    service = victim.service
    bomb = write_tree(tmp_path / "evil-bomb", base_seed=1, adapter_seed=2)
    save_file({"layers.0.weight": np.zeros((64 * MIB,), np.float16)}, bomb / "base" / "model.safetensors")
    build_package(None, bomb, tmp_path / "evil.lmpkg")
    raw = (tmp_path / "evil.lmpkg").read_bytes()
    assert len(raw) < 64_000
    thief = service.trust.stolen("deltas", "snapshot", "timestamp")
    ref = offer_package(victim, thief, raw)
    altered(victim, package=ref)
    victim.refuses(PackageError, "cannot be applied")
    assert sum(f.stat().st_size for f in (victim.folder / "home").rglob("*") if f.is_file()) < MIB


def offer_package(victim: Victim, thief: FakeTrust, raw: bytes):
    """Let the thief sign these bytes as the full package of v2, and serve them; returns how an offer names them."""
    service, path = victim.service, f"packages/tiny/{V2}/full.lmpkg"
    service.files[path] = raw
    thief.add_target(path, raw, {})
    thief.sign(without=("targets", "packages", "releases"))
    service.metadata = thief.metadata
    digest = thief.list_for(path).targets[path].hashes["sha256"]
    return service.published[V2].packages[None].model_copy(update={"length": len(raw), "sha256": digest})


@pytest.mark.parametrize("path", ["../../../evil-file", "/evil-file", "base/../../evil-file", "base\\..\\evil-file"])
def test_path_traversal(victim: Victim, path: str) -> None:
    """Names that lead out of the slot: in a package, in a signed manifest, in the offer's own paths."""
    service = victim.service
    thief = service.trust.stolen("deltas", "snapshot", "timestamp")
    raw = with_other_header(service.files[f"packages/tiny/{V2}/full.lmpkg"], path)
    altered(victim, package=offer_package(victim, thief, raw))
    victim.refuses(PackageError, "cannot be applied here: header is not valid.*(climbs|backslash)")
    # Even the releases key does not help: such a manifest is not parsed.
    thief = service.trust.stolen("releases", "deltas", "snapshot", "timestamp")
    manifest = json.loads(service.files["manifests/tiny/2.json"])
    rename(manifest["files"], path)
    manifest["tree_hash"] = hash_of(manifest["files"])
    evil = json.dumps(manifest).encode()
    service.files["manifests/tiny/2.json"] = evil
    thief.add_target("manifests/tiny/2.json", evil, {})
    thief.snapshot.version, thief.timestamp.version = 100, 100
    thief.sign(without=("targets", "packages"))
    service.metadata = thief.metadata
    altered(victim)
    victim.refuses(MetadataError, "not a manifest this device understands.*(climbs|backslash)")
    document = json.loads(service.offer(V2).model_dump_json())
    document["package"]["path"] = f"packages/tiny/2/{path}"
    service.answers = [json.dumps(document).encode()]
    victim.refuses((ServiceRefusedError, OfferRefusedError), "not a valid Offer|points at")


def rename(files: list[dict[str, object]], path: str) -> None:
    """Give the settings file another name; files stay sorted by path, as readers demand."""
    next(file for file in files if file["path"] == "base/config.json")["path"] = path
    files.sort(key=lambda file: str(file["path"]))


def hash_of(files: list[dict[str, object]]) -> str:
    """A tree's hash, as delta_updates/README.md says."""
    lines = "".join(f"{file['path']}\0{file['length']}\0{file['sha256']}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def with_other_header(package: bytes, path: str) -> bytes:
    """A package with a file renamed in its header, all hashes made to fit: what no writer of ours would write."""
    magic, version, length, _digest = struct.unpack("<8sII32s", package[:48])
    header = json.loads(package[48 : 48 + length])
    files = [packaged["file"] for packaged in header["files"]]
    rename(files, path)
    header["files"].sort(key=lambda packaged: str(packaged["file"]["path"]))
    header["target_hash"] = hash_of(files)
    raw = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    prelude = struct.pack("<8sII32s", magic, version, len(raw), hashlib.sha256(raw).digest())
    return prelude + raw + package[48 + length :]


def test_symlink(victim: Victim, tmp_path: Path) -> None:
    """Links where the device is about to write: nothing is written through them."""
    outside = tmp_path / "evil-outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    home, service = victim.folder / "home", victim.service
    active = victim.open_device().active().tree
    free = home / "slots" / ("b" if active.parent.name == "a" else "a")
    shutil.rmtree(free, ignore_errors=True)
    free.symlink_to(outside)
    shutil.rmtree(home / "downloads")
    (home / "downloads").mkdir()
    part = home / "downloads" / f"{service.published[V2].packages[V1].sha256}.part"
    part.symlink_to(outside / "precious")
    victim.recovers()
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"precious": "precious"}


def at(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Set the device's clock."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return moment

    fake = SimpleNamespace(datetime=Clock, timezone=SimpleNamespace(utc=UTC))
    monkeypatch.setattr("tuf.ngclient._internal.trusted_metadata_set.datetime", fake)


def test_clock_set_forward(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything looks expired: the device says so and keeps what it has; nothing of it stays."""
    with monkeypatch.context() as patched:
        at(patched, datetime.now(UTC) + timedelta(days=3650))
        victim.refuses(MetadataError, r"expired.*Check this device's clock")
    victim.recovers()


def test_clock_set_back(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing looks expired: old metadata is still older than what was seen, so it is refused all the same."""
    service = victim.service
    service.trust.sign(expires=an_hour_ago())
    expired_v2 = dict(service.metadata)
    service.trust.sign()
    service.on_offer = lambda _offer: service.offer(V1)
    assert victim.open_device().check() is None  # has seen the newest
    with monkeypatch.context() as patched:
        at(patched, datetime(1970, 1, 2, tzinfo=UTC))
        for old in (victim.before_v2, expired_v2):
            service.metadata = dict(old)
            victim.refuses(MetadataError, "does not verify")
        # A clock whose battery is empty does not keep a device from the newest version.
        victim.recovers()


def test_duplicate_key_ids(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key that would count twice: as two signatures, as two entries of a role, as one key under two ids."""
    service, trust = victim.service, victim.service.trust
    root = json.loads(service.metadata["1.root.json"])
    root["signed"]["version"] = 2
    one = root["signatures"][0]
    honest = dict(service.metadata)
    for signatures in ([one, one], [one, one | {"keyid": "f" * 64}]):
        service.metadata = honest | {"2.root.json": json.dumps(root | {"signatures": signatures}).encode()}
        victim.refuses(MetadataError, "does not verify")
    twice = json.loads(service.metadata["1.root.json"])
    twice["signed"]["version"] = 2
    keyids = twice["signed"]["roles"]["root"]["keyids"]
    twice["signed"]["roles"]["root"]["keyids"] = [keyids[0], keyids[0]]
    service.metadata = honest | {"2.root.json": json.dumps(twice).encode()}
    victim.refuses(MetadataError, "does not verify")
    service.metadata = honest
    # In the root that a device starts from: one person's key under three ids would make 2-of-3 a 1-of-1.
    key = trust.root.keys[trust.signers["root"][0].public_key.keyid]
    for number, keyid in enumerate(list(trust.root.roles["root"].keyids)):
        if keyid != key.keyid:
            trust.root.revoke_key(keyid, "root")
            trust.root.add_key(type(key)(f"{number}" * 64, key.keytype, key.scheme, key.keyval), "root")
    signer = trust.signers["root"][0]
    raw = json.loads(trust.store("root", trust.root))
    payload = type(trust.root).from_dict(json.loads(json.dumps(raw["signed"])))
    assert payload.roles["root"].threshold == 2
    signature = signer.sign(Metadata(trust.root).signed_bytes).signature
    raw["signatures"] = [{"keyid": keyid, "sig": signature} for keyid in trust.root.roles["root"].keyids]
    with pytest.raises(EnrolmentError, match="same key"):
        checked_root(raw)


def test_a_delta_key_cannot_mint_a_version(victim: Victim) -> None:
    """The online keys name a manifest in a bin, and serve a package that fits it: nobody asks a bin for manifests."""
    service = victim.service
    thief = service.trust.stolen("deltas", "snapshot", "timestamp")
    victim.forged_version(thief, version=9)
    # The thief has no releases key, so the manifest goes where the deltas key signs: into every bin.
    path = "manifests/tiny/9.json"
    file = thief.releases.targets.pop(path)
    for targets in thief.bins.values():
        targets.targets[path] = file
    thief.sign(without=("targets", "packages", "releases"))
    service.metadata = thief.metadata
    victim.refuses(MetadataError, "not among the files")
    # The other way: the true manifest of v2, and a package that makes something else.
    evil = (victim.folder / "evil.lmpkg").read_bytes()
    thief = service.trust.stolen("deltas", "snapshot", "timestamp")
    thief.snapshot.version, thief.timestamp.version = 100, 100
    for targets in thief.bins.values():
        targets.version = 100
    altered(victim, package=offer_package(victim, thief, evil))
    victim.refuses(PackageError, "cannot be applied")


def test_an_offer_is_never_more_than_a_choice(victim: Victim) -> None:
    """Every fact of an offer, changed alone, is refused."""
    good: Offer = victim.service.offer(V2, source=V1)
    other = "ab" * 32
    for changes in (
        {"tree_hash": other},
        {"version": 3},
        {"manifest_path": "manifests/tiny/1.json"},
        {"package": good.package.model_copy(update={"sha256": other})},
        {"package": good.package.model_copy(update={"length": 5})},
        {"package": good.package.model_copy(update={"source_version": None})},
    ):
        altered(victim, **changes)
        victim.refuses((OfferRefusedError, MetadataError), "points at|contradicts|not among")
    victim.recovers()
