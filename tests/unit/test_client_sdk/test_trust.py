"""Decisions about offers, without any I/O."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulators.versions import manifest_of, write_tree

from client_sdk.errors import OfferRefusedError
from client_sdk.trust import Installed, SignedFile, is_installed, require_acceptable, require_signed
from delta_updates import Offer, PackageRef

HASH = "a" * 64
OTHER_HASH = "b" * 64


def an_offer(version: int = 3, *, source: int | None = 2, tree_hash: str = HASH, model: str = "tiny") -> Offer:
    name = "full" if source is None else f"from-{source}"
    return Offer(
        offer_id="o1",
        model=model,
        version=version,
        tree_hash=tree_hash,
        manifest_path=f"manifests/{model}/{version}.json",
        package=PackageRef(
            path=f"packages/{model}/{version}/{name}.lmpkg", length=10, sha256=HASH, source_version=source
        ),
    )


AT_V2 = Installed(model="tiny", version=2, tree_hash=OTHER_HASH, highest_version=2, highest_hash=OTHER_HASH)


def test_a_newer_version_from_what_is_installed_is_acceptable() -> None:
    require_acceptable(an_offer(), AT_V2)
    require_acceptable(an_offer(source=None), AT_V2, only_full=True)


@pytest.mark.parametrize(
    ("offer", "installed", "says"),
    [
        (an_offer(model="other"), AT_V2, "runs 'tiny'"),
        (an_offer(1, source=None), AT_V2, "older than v2"),
        # Slots lost, counter kept: nothing is installed, yet an old version stays refused.
        (an_offer(1, source=None), replace(AT_V2, version=None, tree_hash=None), "older than v2"),
        (an_offer(2, source=None), AT_V2, "same bytes"),
        (an_offer(1_000_003, source=None), AT_V2, "more than 1000000 above v2"),
        (an_offer(), replace(AT_V2, failed_versions=frozenset({3})), "failed its self-test"),
        (an_offer(4), replace(AT_V2, failed_hashes=frozenset({HASH})), "failed its self-test"),
        (an_offer(source=1), AT_V2, "has v2 installed"),
        (an_offer(source=2), replace(AT_V2, version=None), "has nothing installed"),
        (an_offer(), "only_full", "asked for a full package"),
        (an_offer().model_copy(update={"manifest_path": "manifests/tiny/2.json"}), AT_V2, "points at"),
    ],
)
def test_refused_offers(offer: Offer, installed: Installed | str, says: str) -> None:
    with pytest.raises(OfferRefusedError, match=says):
        require_acceptable(
            offer, AT_V2 if isinstance(installed, str) else installed, only_full=isinstance(installed, str)
        )


@pytest.mark.parametrize(
    "path",
    ["packages/tiny/2/full.lmpkg", "packages/other/3/full.lmpkg", "packages/tiny/3/x/full.lmpkg", "packages/tiny/3/.x"],
)
def test_a_package_path_of_another_version_is_refused(path: str) -> None:
    offer = an_offer()
    moved = offer.model_copy(update={"package": offer.package.model_copy(update={"path": path})})
    with pytest.raises(OfferRefusedError, match="points at"):
        require_acceptable(moved, AT_V2)


def test_a_large_step_is_acceptable_up_to_the_bound_and_on_an_empty_device() -> None:
    require_acceptable(an_offer(1_000_002, source=None), AT_V2)
    require_acceptable(an_offer(2**30, source=None), Installed(model="tiny"))


def test_the_lost_version_itself_may_come_back() -> None:
    lost = Installed(model="tiny", highest_version=3, highest_hash=HASH)
    require_acceptable(an_offer(3, source=None), lost)


def test_what_serves_is_recognised() -> None:
    assert is_installed(an_offer(), replace(AT_V2, version=3, tree_hash=HASH))
    assert not is_installed(an_offer(), replace(AT_V2, version=3, tree_hash=OTHER_HASH))


@given(version=st.integers(1, 50), highest=st.integers(0, 50), installed=st.none() | st.integers(1, 50))
def test_no_offer_ever_lowers_the_version(version: int, highest: int, installed: int | None) -> None:
    device = Installed(model="tiny", version=installed, tree_hash=OTHER_HASH, highest_version=highest)
    try:
        require_acceptable(an_offer(version, source=None), device)
    except OfferRefusedError:
        return
    assert version >= highest


def test_every_fact_of_an_offer_must_be_the_signed_one(tmp_path: Path) -> None:
    manifest = manifest_of(write_tree(tmp_path / "tree"), version=3)
    offer = an_offer(tree_hash=manifest.tree_hash)
    custom = {"model": "tiny", "version": 3, "tree_hash": manifest.tree_hash, "source_version": 2}
    signed = SignedFile(offer.package.path, offer.package.length, offer.package.sha256, custom)
    require_signed(offer, manifest, signed)
    require_signed(offer, manifest, signed._replace(custom={}))
    for wrong in (
        signed._replace(length=11),
        signed._replace(sha256=OTHER_HASH),
        signed._replace(path="packages/tiny/3/full.lmpkg"),
        signed._replace(custom=custom | {"source_version": 1}),
        signed._replace(custom=custom | {"version": 2}),
        signed._replace(custom=custom | {"tree_hash": OTHER_HASH}),
        signed._replace(custom=custom | {"model": "other"}),
    ):
        with pytest.raises(OfferRefusedError, match="contradicts what is signed"):
            require_signed(offer, manifest, wrong)
    for other in ({"version": 4}, {"tree_hash": OTHER_HASH}, {"model": "other"}):
        with pytest.raises(OfferRefusedError, match="contradicts what is signed"):
            require_signed(offer.model_copy(update=other), manifest, signed)
