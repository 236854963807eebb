from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from simulators.server_home import MODEL, open_home

from delta_updates import UpdateQuery
from server.errors import ConflictError
from server.offers import explain
from server.room import Room
from server.way_told import told
from server.ways import Way, find_way


@dataclass(frozen=True)
class OnlySigned:
    """Metadata in which only these versions are still signed."""

    numbers: frozenset[int]

    def signed_versions(self, model: str) -> frozenset[int]:
        assert model == MODEL
        return self.numbers


def test_a_chain_has_no_step_that_is_not_signed_any_more(tmp_path: Path) -> None:
    home = open_home(tmp_path)
    home.release_three()
    registry = home.registry
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(days=1))
    device, _ = registry.enrol(token, name="phone")
    tree_hash = registry.version(MODEL, 1).manifest.tree_hash
    query = UpdateQuery(model=MODEL, installed_version=1, installed_hash=tree_hash)

    def way(*signed: int) -> Way:
        found = find_way(registry, OnlySigned(frozenset(signed)), registry.asking(device.device_id), query, Room()).way
        assert found is not None
        return found

    assert [version.number for _, version in way(1, 2, 3).chain] == [2, 3]
    assert way(1, 3).chain == ()
    assert way(1, 3).package.source_version is None
    registry.close()


def test_a_device_that_reads_no_package_is_told_to_update_its_agent(tmp_path: Path) -> None:
    home = open_home(tmp_path)
    home.release_three()
    registry = home.registry
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(days=1))
    asking = registry.asking(registry.enrol(token, name="phone")[0].device_id)
    signed, query = OnlySigned(frozenset({1, 2, 3})), UpdateQuery(model=MODEL)
    assert find_way(registry, signed, asking, query, Room(), last_format=3).way is not None
    with pytest.raises(ConflictError, match="packages of format 3, and this device's agent reads formats up to 2"):
        find_way(registry, signed, asking, query, Room(), last_format=2)
    registry.close()


def test_the_way_is_told_in_words_and_is_the_one_that_a_check_offers(tmp_path: Path) -> None:
    home = open_home(tmp_path)
    home.release_three()
    registry, signed = home.registry, OnlySigned(frozenset({1, 2, 3}))
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(days=1))
    device_id = registry.enrol(token, name="phone")[0].device_id
    tree_hash = registry.version(MODEL, 1).manifest.tree_hash
    full = next(one for one in registry.packages(MODEL, 3) if one.source_version is None)

    def words(installed_hash: str | None, free_bytes: int | None, number: int | None = 1) -> str:
        registry.record_check(device_id, installed_version=number, installed_hash=installed_hash, free_bytes=free_bytes)
        decided = explain(registry, device_id, installed_version=number)
        return "\n".join(told(registry, signed, registry.device(device_id), decided))

    chained = words(tree_hash, 10**9)
    assert "2 deltas one after the other, v1 → v2 → v3" in chained
    assert "1.0 GB of its disk are free" in chained
    assert "did not say how much" in words(tree_hash, None)
    assert "does not fit on this device's disk" in words(tree_hash, 1)
    damaged = words("f" * 64, 10**9)
    assert f"It gets the full package, {full.length / 1e6:.3f} MB." in damaged
    assert "its bytes are not those of v1" in damaged
    assert "delta" not in words(None, 10**9, number=None)
    assert words(registry.version(MODEL, 3).manifest.tree_hash, 10**9, number=3) == ""
    registry.close()
