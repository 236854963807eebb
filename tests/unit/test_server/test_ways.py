from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from simulators.server_home import MODEL, open_home

from delta_updates import UpdateQuery
from server.room import Room
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
        found = find_way(registry, OnlySigned(frozenset(signed)), device.device_id, query, Room()).way
        assert found is not None
        return found

    assert [version.number for _, version in way(1, 2, 3).chain] == [2, 3]
    assert way(1, 3).chain == ()
    assert way(1, 3).package.source_version is None
    registry.close()
