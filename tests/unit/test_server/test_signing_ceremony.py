"""Replacing keys and renewing expiry: what a device sees before, during and after, and what is refused."""

import shutil
from datetime import datetime
from pathlib import Path

import pytest
from simulators.power_cut import Fuse, PowerCutError
from simulators.server_home import PASSPHRASE, Clock, init_trust, offline_keys
from simulators.tuf_client import folder_getter, updater_for
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Targets
from tuf.ngclient import Updater

from server.config import Settings
from server.errors import ConfigurationError, SigningError
from server.signing import Ceremonies, KeyFolder, Lifetimes, NewTarget, Proposal, SignedMetadata, overview

MANIFEST = "manifests/m/1.json"
PACKAGE = "packages/m/1/full.lmpkg"
ROLES = ("root", "targets", "releases", "deltas", "snapshot", "timestamp")


class Place:
    """An operator's home and offline keys in one folder, and devices that look at it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.settings = Settings(home=folder / "home")
        self.keys = offline_keys(folder)

    def ceremonies(self, fuse: Fuse | None = None) -> Ceremonies:
        write = {"write": fuse.write} if fuse else {}
        return Ceremonies(self.settings.home, lifetimes=Lifetimes.of(self.settings), now=self.clock, **write)

    def metadata(self) -> SignedMetadata:
        return SignedMetadata.open(self.settings, release_keys=self.keys, now=self.clock)

    def release(self, version: int) -> None:
        name = f"m/{version}"
        self.metadata().add_release(
            manifest=NewTarget(path=f"manifests/{name}.json", length=1, sha256="a" * 64, custom={}),
            packages=[NewTarget(path=f"packages/{name}/full.lmpkg", length=1, sha256="b" * 64, custom={})],
        )

    def device(self, name: str, root: bytes) -> Updater:
        """A device, as it is the next time it looks; `name` keeps its cache."""
        updater = updater_for(folder_getter(self.settings.home / "metadata"), self.folder / name, root=root)
        as_of(self.clock.time, updater)
        return updater

    def show(self) -> dict[str, tuple[str, ...]]:
        found = overview(
            self.settings.home, searched=[self.keys.folder], lifetimes=Lifetimes.of(self.settings), warn_days=30
        )
        return {role.role: tuple(keyid for keyid, _ in role.keys) for role in found.roles}


def as_of(moment: datetime, updater: Updater) -> None:
    updater._trusted_set.reference_time = moment
    updater.refresh()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which v1 is signed; copied for each test."""
    folder = tmp_path_factory.mktemp("made")
    place = Place(folder, Clock())
    init_trust(place.settings, place.keys, now=place.clock)
    place.release(1)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, clock: Clock) -> Place:
    shutil.copytree(made, tmp_path / "place")
    return Place(tmp_path / "place", clock)


def holders(place: Place) -> list[KeyFolder]:
    """The root keys, each moved to its holder's own folder."""
    folders = []
    for number, pem in enumerate(sorted(place.keys.folder.glob("root-*.pem"))):
        folder = place.folder / f"holder-{number}"
        folder.mkdir(mode=0o700)
        for path in (pem, pem.with_suffix(".pub")):
            path.rename(folder / path.name)
        folders.append(KeyFolder(folder, lambda: PASSPHRASE))
    return folders


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_keys_are_replaced_and_devices_follow(place: Place, role: str) -> None:
    root = place.metadata().root_bytes()
    place.device("old", root)
    before = place.show()
    ceremonies = place.ceremonies()
    proposal = ceremonies.rotate([role], offline=place.keys)
    assert any(
        line.startswith(f"keys of {role}: without {before[role][0][:8]}") or role == "root"
        for line in proposal.changes()
    )
    proposal.sign(place.keys)
    assert proposal.missing() == []
    assert ceremonies.publish(proposal)
    assert not ceremonies.publish(proposal)  # it is there already
    after = place.show()
    assert not set(after[role]) & set(before[role])
    assert {name: keys for name, keys in after.items() if name != role} == {
        name: keys for name, keys in before.items() if name != role
    }
    place.release(2)
    for name in ("old", "new"):
        device = place.device(name, root)
        for path in (MANIFEST, PACKAGE, "manifests/m/2.json", "packages/m/2/full.lmpkg"):
            assert device.get_targetinfo(path), (name, path)
    pems = {path.name.partition("-")[0] for path in (place.settings.home / "keys").glob("*.pem")}
    assert pems == {"deltas", "snapshot", "timestamp"}
    assert len(list((place.settings.home / "keys").glob("*.pem"))) == 3


@pytest.mark.parametrize("roles", [("root", "targets"), ("deltas", "snapshot", "timestamp"), ROLES])
def test_a_cut_at_any_write_of_a_rotation_leaves_devices_with_something_they_can_verify(
    made: Path, tmp_path: Path, clock: Clock, roles: tuple[str, ...]
) -> None:
    def fresh(name: str) -> tuple[Place, Proposal]:
        shutil.copytree(made, tmp_path / name)
        place = Place(tmp_path / name, clock)
        proposal = place.ceremonies().rotate(roles, offline=place.keys)
        proposal.sign(place.keys)
        return place, proposal

    place, proposal = fresh("clean")
    clean = Fuse()
    place.ceremonies(clean).publish(proposal)
    assert clean.operations[-1] == "write 2.root.json"
    for cut_at in range(1, len(clean.operations) + 1):
        place, proposal = fresh(f"cut-{cut_at}")
        root = place.metadata().root_bytes()
        with pytest.raises(PowerCutError):
            place.ceremonies(Fuse(cut_at)).publish(proposal)
        for name in ("before", "fresh"):
            device = place.device(name, root)
            assert device.get_targetinfo(MANIFEST)
            assert device.get_targetinfo(PACKAGE)
        # The service runs on, and the same command finishes it.
        place.metadata()
        place.ceremonies().publish(proposal)
        assert place.device("before", root)._trusted_set.root.version == 2
        assert place.device("before", root).get_targetinfo(PACKAGE)


def test_key_holders_sign_on_their_own_machines(place: Place) -> None:
    root = place.metadata().root_bytes()
    first, second, third = holders(place)
    ceremonies = place.ceremonies()
    proposal = ceremonies.rotate(["timestamp"], offline=place.keys)
    assert proposal.sign(place.keys) == []
    proposal.save(place.folder / "proposal")
    with pytest.raises(ConfigurationError, match="not empty"):
        proposal.save(place.folder / "proposal")
    for number, holder in ((1, first), (2, third)):
        copy = place.folder / f"copy-{number}"
        shutil.copytree(place.folder / "proposal", copy)
        carried = Proposal.read(copy)
        assert [document for document, _ in carried.sign(holder)] == ["root"]
        carried.update(copy)
        with pytest.raises(SigningError, match=r"Signatures are missing: root needs 1 more, by root keys"):
            ceremonies.publish(Proposal.read(copy))
    merged = Proposal.read(place.folder / "copy-1")
    merged.merge(Proposal.read(place.folder / "copy-2"))
    assert ceremonies.publish(merged)
    assert place.device("device", root)._trusted_set.root.version == 2
    assert second is not None


def test_one_root_key_of_three_is_replaced(place: Place) -> None:
    root = place.metadata().root_bytes()
    lost, *_ = holders(place)
    lost_id = next(iter(lost.find(place.show()["root"])))
    public = KeyFolder(place.folder / "new-holder", lambda: PASSPHRASE).make("root")
    ceremonies = place.ceremonies()
    proposal = ceremonies.rotate(["root"], offline=place.keys, given=[public], without=[lost_id[:8]])
    proposal.sign(lost)
    # The key that goes counts for the old root only; two others must sign for the new one.
    assert [(missing.document, missing.signatures) for missing in proposal.missing()] == [("root", 1), ("root", 2)]
    for number in (1, 2):
        proposal.sign(KeyFolder(place.folder / f"holder-{number}", lambda: PASSPHRASE))
    assert ceremonies.publish(proposal)
    assert lost_id not in place.show()["root"]
    assert public.keyid in place.show()["root"]
    place.device("device", root)


def test_the_threshold_can_be_raised(place: Place) -> None:
    ceremonies = place.ceremonies()
    proposal = ceremonies.rotate(["root"], offline=place.keys, threshold=3)
    assert "root needs 3 signatures instead of 2" in proposal.changes()
    proposal.sign(place.keys)
    ceremonies.publish(proposal)
    with pytest.raises(SigningError, match="of which 4 must sign"):
        place.ceremonies().rotate(["root"], offline=place.keys, threshold=4)


def test_expiring_metadata_is_renewed_with_the_offline_keys(place: Place) -> None:
    root = place.metadata().root_bytes()
    ceremonies = place.ceremonies()
    assert ceremonies.renew() is None
    place.clock.advance(days=100)
    due = ceremonies.renew()
    assert due is not None
    assert list(due.new) == ["releases"]
    place.clock.advance(days=180)
    due = place.ceremonies().renew()
    assert due is not None
    assert list(due.new) == ["root", "targets", "packages", "releases"]
    due.sign(place.keys)
    place.ceremonies().publish(due)
    metadata = place.metadata()
    assert metadata.warnings(30) == ()
    place.clock.advance(days=100)
    metadata.refresh()
    assert place.device("device", root).get_targetinfo(MANIFEST)


def test_a_device_sleeps_through_three_rotations_and_the_expiry_of_every_root_between(place: Place) -> None:
    root = place.metadata().root_bytes()
    place.device("sleeper", root)
    for _ in range(3):
        place.clock.advance(days=400)
        proposal = place.ceremonies().rotate(["root", "targets", "timestamp"], offline=place.keys)
        proposal.sign(place.keys)
        place.ceremonies().publish(proposal)
    proposal = place.ceremonies().renew(["packages", "releases"])
    assert proposal is not None
    proposal.sign(place.keys)
    place.ceremonies().publish(proposal)
    place.metadata()
    for name in ("sleeper", "fresh"):
        device = place.device(name, root)
        assert device._trusted_set.root.version == 4
        assert device.get_targetinfo(MANIFEST)


# --- what is refused


def test_a_proposal_that_a_release_has_overtaken_is_refused(place: Place) -> None:
    proposal = place.ceremonies().renew(["releases"])
    assert proposal is not None
    proposal.sign(place.keys)
    place.release(2)
    with pytest.raises(SigningError, match="releases has changed since"):
        place.ceremonies().publish(proposal)


def test_a_proposal_that_has_expired_is_refused(place: Place) -> None:
    proposal = place.ceremonies().renew(["root"])
    assert proposal is not None
    proposal.sign(place.keys)
    place.clock.advance(days=366)
    with pytest.raises(SigningError, match="expired already"):
        place.ceremonies().publish(proposal)


def test_signatures_of_another_proposal_are_not_merged(place: Place) -> None:
    one, other = place.ceremonies().renew(["root"]), place.ceremonies().renew(["targets"])
    assert one is not None
    assert other is not None
    with pytest.raises(SigningError, match="different proposals"):
        one.merge(other)


def smuggled(place: Place, change: str) -> Path:
    """A proposal's folder, altered by whoever carries it."""
    folder = place.folder / "proposal"
    proposal = place.ceremonies().renew(["root", "targets", "packages"])
    assert proposal is not None
    targets: Metadata[Targets] = proposal.new["targets"]
    delegations, packages = targets.signed.delegations, proposal.new["packages"].signed.delegations
    assert delegations is not None
    assert delegations.roles is not None
    if change == "file":
        targets.signed.targets["manifests/m/9.json"] = Targets.from_dict(
            {"_type": "targets", "spec_version": "1.0.31", "version": 1, "expires": "2030-01-01T00:00:00Z"}
            | {"targets": {"x": {"length": 1, "hashes": {"sha256": "a" * 64}}}}
        ).targets["x"]
    elif change == "paths":
        delegations.roles["packages"].paths = ["*/*/*"]
    elif change == "role":
        delegations.roles["more"] = DelegatedRole("more", delegations.roles["releases"].keyids, 1, True, ["*/*/*"])
    elif change == "bins":
        packages.succinct_roles.bit_length = 5
    elif change == "same key twice":
        root = proposal.new["root"].signed
        key = root.keys[root.roles["root"].keyids[0]]
        root.keys["f" * 64] = type(key)("f" * 64, key.keytype, key.scheme, key.keyval)
        root.roles["root"].keyids.append("f" * 64)
    proposal.save(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("file", "holds files or other paths"),
        ("paths", "holds files or other paths"),
        ("role", "holds files or other paths"),
        ("bins", "another number of bins"),
        ("same key twice", "are the same key"),
    ],
)
def test_a_proposal_that_opens_a_back_door_is_not_signed(place: Place, change: str, match: str) -> None:
    with pytest.raises((SigningError, ConfigurationError), match=match):
        Proposal.read(smuggled(place, change))


def test_a_damaged_or_foreign_folder_is_no_proposal(place: Place) -> None:
    folder = smuggled(place, "nothing")
    assert Proposal.read(folder).new
    (folder / "3.snapshot.json").write_text("{}")
    with pytest.raises(SigningError, match="no place in a proposal"):
        Proposal.read(folder)
    (folder / "3.snapshot.json").unlink()
    (folder / "2.root.json").write_text("{")
    with pytest.raises(SigningError, match="damaged"):
        Proposal.read(folder)
    with pytest.raises(SigningError, match="not a whole proposal"):
        Proposal.read(place.folder)


@pytest.mark.parametrize(
    ("roles", "options", "match"),
    [
        (["mirror"], {}, "no role 'mirror'"),
        (["root"], {"without": ["zz"]}, "names 0 of the keys"),
        (["root"], {"without": [""]}, "names 3 of the keys"),
        (["targets"], {"threshold": 2}, "for root"),
    ],
)
def test_a_rotation_that_makes_no_sense_is_refused(
    place: Place, roles: list[str], options: dict[str, object], match: str
) -> None:
    with pytest.raises(ConfigurationError, match=match):
        place.ceremonies().rotate(roles, offline=place.keys, **options)


def test_the_server_makes_its_online_keys_itself(place: Place) -> None:
    public = KeyFolder(place.folder / "elsewhere").make("root")
    with pytest.raises(ConfigurationError, match="makes the keys of timestamp itself"):
        place.ceremonies().rotate(["timestamp"], offline=place.keys, given=[public])
    with pytest.raises(ConfigurationError, match="are for one role"):
        place.ceremonies().rotate(["root", "targets"], offline=place.keys, given=[public])


def test_a_new_root_needs_its_online_keys_in_the_home(place: Place) -> None:
    root = place.metadata().root_bytes()
    proposal = place.ceremonies().rotate(["timestamp"], offline=place.keys)
    proposal.sign(place.keys)
    for keyid, pem in KeyFolder(place.settings.home / "keys").find(proposal.keyids("timestamp")).items():
        assert keyid in proposal.keyids("timestamp")
        pem.unlink()
    with pytest.raises(SigningError, match="has not the keys to sign timestamp"):
        place.ceremonies().publish(proposal)
    place.device("device", root)


def test_a_stolen_online_key_is_worth_nothing_after_the_rotation(place: Place) -> None:
    root = place.metadata().root_bytes()
    stolen = place.folder / "stolen"
    shutil.copytree(place.settings.home, stolen)
    proposal = place.ceremonies().rotate(["deltas", "snapshot", "timestamp"], offline=place.keys)
    proposal.sign(place.keys)
    place.ceremonies().publish(proposal)
    place.device("device", root)
    thief = Place(place.folder, place.clock)
    thief.settings = Settings(home=stolen)
    thief.clock.advance(hours=30)
    SignedMetadata.open(thief.settings, now=thief.clock)
    with pytest.raises(RepositoryError):
        thief.device("device", root)


# --- what is shown


def test_the_overview_says_where_keys_are_and_what_to_do(place: Place) -> None:
    lifetimes = Lifetimes.of(place.settings)

    def steps() -> str:
        found = overview(
            place.settings.home,
            searched=[place.keys.folder],
            lifetimes=lifetimes,
            warn_days=30,
            now=place.clock.time,
        )
        return "\n".join(found.next_steps)

    assert "Give each root key its own holder: 3 of them lie together" in steps()
    holders(place)
    assert steps().startswith("Nothing:")
    found = overview(place.settings.home, searched=[place.keys.folder], lifetimes=lifetimes, warn_days=30)
    by_role = {role.role: role for role in found.roles}
    assert [path for _, path in by_role["root"].keys] == [None, None, None]
    assert by_role["releases"].keys[0][1] is not None
    assert (found.bins, found.versions_signed, by_role["root"].threshold) == (4, 1, 2)
    place.clock.advance(days=160)
    assert "Now: lamella trust renew (the releases metadata expires in 20 days)." in steps()
    next((place.settings.home / "keys").glob("snapshot-*.pem")).unlink()
    assert "lamella trust rotate snapshot" in steps()
