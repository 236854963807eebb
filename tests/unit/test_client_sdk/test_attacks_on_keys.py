"""Vulnerability to key compromise: each role's key stolen, by someone who also stands between device and server.

What the thief cannot do is refused; what the thief can do is shown; and after the rotation it is over.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from simulators.fake_trust import FakeTrust, an_hour_ago, signed_bytes
from simulators.update_service import FakeUpdateService
from simulators.versions import write_tree
from simulators.victim import V2, Victim
from tuf.api.metadata import DelegatedRole

from client_sdk import Device, MetadataError, OfferRefusedError, PackageError

ONLINE = ("deltas", "snapshot", "timestamp")


@pytest.fixture
def victim(service: FakeUpdateService, open_device: Callable[..., Device], tmp_path: Path) -> Victim:
    victim = Victim(service, open_device, tmp_path)
    victim.prepare()
    return victim


def heal(victim: Victim, *roles: str) -> None:
    """What the operator does: new keys for the stolen ones, and for snapshot and timestamp."""
    victim.service.on_offer = lambda offer: offer
    victim.service.trust.rotate(*dict.fromkeys((*roles, "snapshot", "timestamp")))
    victim.service.sign()


def forge(victim: Victim, thief: FakeTrust, *, replace: tuple[str, ...]) -> None:
    """A version of the thief's making; `replace` are the documents that the thief signs anew under the same number."""
    victim.forged_version(thief, version=9)
    named = {"releases": thief.releases, "targets": thief.targets, "packages": thief.packages, **thief.bins}
    for document in replace:
        thief.store(document, named[document])
    victim.service.metadata = thief.metadata


@pytest.mark.parametrize("role", ["targets", "releases", "deltas", "snapshot", "timestamp", "releases+deltas"])
def test_a_stolen_key_alone_installs_nothing(victim: Victim, role: str) -> None:
    """The thief replaces what the key signs, under the number that snapshot and timestamp name already."""
    trust = victim.service.trust
    thief = trust.stolen(*role.split("+"))
    if role == "targets":  # names the thief's own keys for releases and bins
        thief.targets.add_key(thief.signers["releases"][0].public_key, "releases")
        thief.packages.add_key(thief.signers["deltas"][0].public_key, "deltas-0")
        forge(victim, thief, replace=("targets", "packages", "releases", *thief.bins))
    elif role.startswith("releases"):
        forge(victim, thief, replace=("releases", *thief.bins))
    elif role == "deltas":
        for targets in thief.bins.values():
            targets.targets |= thief.releases.targets
        forge(victim, thief, replace=tuple(thief.bins))
    else:
        forge(victim, thief, replace=())
        thief.sign()
        # Signed by strangers, but for the one document whose key was stolen.
        name = max(name for name in thief.metadata if name.endswith(f"{role}.json"))
        victim.service.metadata = trust.metadata | {
            name: thief.metadata[name],
            "timestamp.json": thief.metadata["timestamp.json"]
            if role == "timestamp"
            else trust.metadata["timestamp.json"],
        }
    victim.refuses(MetadataError, "does not verify|not among the files")
    heal(victim, *role.split("+"))
    victim.recovers()


def test_a_stolen_timestamp_key_freezes_until_the_snapshot_expires(victim: Victim) -> None:
    """It can keep the news from a device, by renewing what names the old snapshot; no longer than that one holds."""
    service = victim.service
    thief = service.trust.stolen("timestamp")
    thief.metadata = dict(victim.before_v2)
    old = max(name for name in victim.before_v2 if name.endswith("snapshot.json"))
    thief.timestamp.snapshot_meta.version = int(old.partition(".")[0])
    thief.timestamp.snapshot_meta.length = len(victim.before_v2[old])
    thief.timestamp.snapshot_meta.hashes = None
    thief.sign_timestamp(expires=(datetime.now(UTC) + timedelta(days=9999)).replace(microsecond=0))
    service.metadata = thief.metadata
    service.answers = [204]
    assert victim.open_device().update().decision == "up_to_date"
    # The service signs on; but what the thief holds back expires by itself.
    service.trust.sign(expires=an_hour_ago())
    thief.timestamp.snapshot_meta.version = service.trust.snapshot.version
    thief.timestamp.snapshot_meta.length = None
    thief.metadata |= {name: raw for name, raw in service.trust.metadata.items() if name != "timestamp.json"}
    thief.sign_timestamp()
    service.answers = [204]
    victim.refuses(MetadataError, "snapshot.json is expired")
    heal(victim, "timestamp")
    victim.recovers()


def test_all_stolen_online_keys_mint_no_version(victim: Victim) -> None:
    """A break-in into the server: the thief signs bins, snapshots and timestamps, and has no releases key."""
    service = victim.service
    thief = service.trust.stolen(*ONLINE)
    victim.forged_version(thief, version=9)
    thief.releases.targets.pop("manifests/tiny/9.json")
    thief.sign(without=("targets", "packages", "releases"))
    service.metadata = thief.metadata
    victim.refuses(MetadataError, "not among the files")
    # With a list of releases of the thief's own, which a stranger's key signs.
    victim.forged_version(thief, version=9)
    thief.sign(without=("targets", "packages"))
    victim.refuses(MetadataError, "does not verify")
    heal(victim, *ONLINE)
    victim.recovers()


def test_all_stolen_online_keys_freeze_until_the_list_of_releases_expires(victim: Victim) -> None:
    """They can sign the old list of releases into new snapshots; it ends with that list, which they cannot renew."""
    service = victim.service
    service.trust.releases.expires = an_hour_ago()
    service.trust.releases.version += 1
    service.trust.store("releases", service.trust.releases)
    thief = service.trust.stolen(*ONLINE)
    content = thief.metadata[f"{thief.releases.version}.releases.json"]
    entry = thief.snapshot.meta["releases.json"]
    entry.version, entry.length, entry.hashes = thief.releases.version, len(content), None
    thief.sign_snapshot()
    service.metadata = thief.metadata
    victim.refuses(MetadataError, "releases is expired")
    heal(victim, *ONLINE)
    victim.recovers()


def test_stolen_releases_and_online_keys_mint_a_version_until_they_are_replaced(victim: Victim) -> None:
    """The one theft that ships: server and releasing person together. A higher number leads every device out of it."""
    service = victim.service
    thief = service.trust.stolen("releases", *ONLINE)
    victim.forged_version(thief, version=9)
    thief.sign(without=("targets", "packages"))
    service.metadata = thief.metadata
    assert victim.open_device().update().to_version == 9
    heal(victim, "releases", *ONLINE)
    service.metadata = service.trust.metadata
    # The counter of this device does not go down, not even for the owner of the keys.
    service.answers = [service.offer(V2)]
    with pytest.raises(OfferRefusedError, match="older than v9"):
        victim.open_device().update()
    service.publish(write_tree(victim.folder / "evil-v10", base_seed=4), version=10)
    victim.recovers(10)
    # What the thief signs from now on is a stranger's.
    victim.forged_version(thief, version=11)
    thief.sign(without=("targets", "packages"))
    service.metadata = thief.metadata
    with pytest.raises(MetadataError, match="does not verify"):
        victim.open_device().update()
    victim.require_unharmed(10)


@pytest.mark.parametrize("stolen", [0, 1])
def test_less_than_the_threshold_of_root_keys_is_nothing(victim: Victim, stolen: int) -> None:
    """A new root, signed by one of three keys and by whoever else: it replaces nothing."""
    trust = victim.service.trust
    thief = trust.stolen()
    for role in ("targets", "snapshot", "timestamp"):
        thief.root.revoke_key(trust.signers[role][0].public_key.keyid, role)
        thief.root.add_key(thief.signers[role][0].public_key, role)
    thief.root.version += 1
    signers = [*trust.signers["root"][:stolen], *thief.signers["root"]]
    victim.service.metadata = trust.metadata | {"2.root.json": signed_bytes(thief.root, signers)}
    victim.refuses(MetadataError, "does not verify")
    trust.rotate("root")
    victim.service.sign()
    victim.recovers()


def test_the_old_root_keys_are_worth_nothing_after_a_rotation(victim: Victim) -> None:
    """Two of three root keys, stolen after the operator has replaced them: the device has walked on."""
    trust = victim.service.trust
    thief = trust.stolen("root")
    trust.rotate("root")
    victim.service.sign()
    victim.recovers()
    thief.root.version += 2
    thief.metadata = dict(trust.metadata)
    thief.metadata["3.root.json"] = signed_bytes(thief.root, thief.signers["root"])
    victim.service.metadata = thief.metadata
    with pytest.raises(MetadataError, match="does not verify"):
        victim.open_device().update()
    victim.require_unharmed(V2)


def test_a_device_sleeps_through_three_root_rotations_and_their_expiry(victim: Victim) -> None:
    """Every root between is expired when the device wakes; only the last one has to hold."""
    trust = victim.service.trust
    for number in range(3):
        trust.rotate("root", "timestamp", "snapshot", "targets", expires=an_hour_ago() if number < 2 else None)
    victim.service.sign()
    victim.recovers()


def test_a_device_that_wakes_to_an_expired_last_root_says_so(victim: Victim) -> None:
    victim.service.trust.rotate("root", expires=an_hour_ago())
    victim.service.sign()
    victim.refuses(MetadataError, "Final root.json is expired")
    victim.service.trust.rotate("root")
    victim.service.sign()
    victim.recovers()


def test_a_role_reaches_no_further_than_its_paths(victim: Victim) -> None:
    """The true releases key names packages, and delegates them; nobody asks it for those."""
    service, trust = victim.service, victim.service.trust
    path = service.published[V2].packages[None].path
    file = trust.list_for(path).targets.pop(path)
    trust.releases.targets[path] = file
    trust.releases.delegations = trust.targets.delegations
    assert trust.releases.delegations is not None
    assert isinstance((trust.releases.delegations.roles or {})["releases"], DelegatedRole)
    service.sign()
    service.answers = [service.offer(V2)]
    victim.refuses(MetadataError, "not among the files")
    # And the bins name a manifest of v2 with other contents: the releases key's is the one that counts.
    trust.releases.targets.pop(path)
    trust.releases.delegations = None
    trust.list_for(path).targets[path] = file
    for targets in trust.bins.values():
        targets.targets["manifests/tiny/2.json"] = file
    service.sign()
    victim.recovers()


def test_a_package_that_a_thief_signed_over_is_replaced_by_the_true_one(victim: Victim) -> None:
    """The deltas key signs noise as v2's packages: refused after the download, and gone after the rotation."""
    service = victim.service
    thief = service.trust.stolen(*ONLINE)
    honest = dict(service.files)
    for source in (None, 1):
        ref = service.published[V2].packages[source]
        noise = bytes(ref.length)
        service.files[ref.path] = noise
        thief.add_target(ref.path, noise, {})
        digest = thief.list_for(ref.path).targets[ref.path].hashes["sha256"]
        service.published[V2].packages[source] = ref.model_copy(update={"sha256": digest})
    thief.sign(without=("targets", "packages", "releases"))
    service.metadata = thief.metadata
    victim.refuses(PackageError, "cannot be applied")
    service.files = honest
    for source in (None, 1):
        ref = service.published[V2].packages[source]
        signed = service.trust.list_for(ref.path).targets[ref.path]
        service.published[V2].packages[source] = ref.model_copy(update={"sha256": signed.hashes["sha256"]})
    heal(victim, *ONLINE)
    victim.recovers()
