import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st
from simulators.server_home import MODEL, Home, make_manifest, make_package, release

from delta_updates import UpdateQuery
from delta_updates.offer import MAX_CHAIN
from server.offers import cheapest_chain, choose_package
from server.registry import PackageRecord

KNOWN, STRANGE = "1" * 64, "2" * 64


def choose(
    home: Home, installed: int | None, *, claimed: str | None = None, known: str | None = None, full: bool = False
) -> PackageRecord | None:
    """What a device that says it has ``installed`` is offered, when v3 is the latest, with deltas from v1 and v2."""
    registry = home.registry
    if not registry.versions(MODEL):
        registry.add_candidate(make_manifest())
        for number in (2, 3):
            registry.add_candidate(make_manifest(kind="adapter", parent=number - 1, adapter="ab"[number - 2]))
        release(registry, 3, 1, 2)
    query = UpdateQuery(model=MODEL, installed_version=installed, installed_hash=claimed, only_full=full)
    return choose_package(
        query, latest=registry.version(MODEL, 3), installed_hash=known, packages=registry.packages(MODEL, 3)
    )


FULL, FROM_2 = make_package(3), make_package(3, 2)


def test_a_known_version_gets_its_delta(home: Home) -> None:
    assert choose(home, 2, claimed=KNOWN, known=KNOWN) == FROM_2


def test_a_device_without_anything_gets_the_full_package(home: Home) -> None:
    assert choose(home, None) == FULL


def test_unknown_contents_get_the_full_package(home: Home) -> None:
    assert choose(home, 2, claimed=STRANGE, known=KNOWN) == FULL
    assert choose(home, 2, claimed=None, known=KNOWN) == FULL
    assert choose(home, 2, claimed=STRANGE, known=None) == FULL


def test_who_asks_for_full_gets_full(home: Home) -> None:
    assert choose(home, 2, claimed=KNOWN, known=KNOWN, full=True) == FULL


def test_who_is_up_to_date_gets_nothing(home: Home) -> None:
    latest = make_manifest(kind="adapter", parent=2, adapter="b").tree_hash
    assert choose(home, 3, claimed=latest, known=latest) is None
    assert choose(home, 3, claimed=None, known=latest) is None
    assert choose(home, 3, claimed=latest, known=latest, full=True) is None


def test_a_damaged_latest_version_is_repaired(home: Home) -> None:
    assert choose(home, 3, claimed=STRANGE, known=KNOWN) == FULL


def test_nothing_lower_is_ever_offered(home: Home) -> None:
    for installed in (4, 2**31):
        for claimed in (None, KNOWN):
            assert choose(home, installed, claimed=claimed, full=claimed is None) is None


def delta(source: int, target: int, length: int) -> PackageRecord:
    return dataclasses.replace(make_package(target, source), length=length)


def steps(deltas: list[PackageRecord], *, source: int, target: int) -> list[int]:
    return [package.version for package in cheapest_chain(deltas, source=source, target=target)]


def test_the_chain_of_fewest_bytes() -> None:
    deltas = [delta(1, 2, 10), delta(2, 3, 10), delta(1, 3, 25), delta(3, 4, 10), delta(2, 4, 15), delta(1, 4, 40)]
    assert steps(deltas, source=1, target=3) == [2, 3]
    assert steps(deltas, source=1, target=4) == [2, 4]
    assert steps(deltas, source=3, target=4) == [4]
    assert steps(deltas, source=4, target=4) == []
    assert steps(deltas, source=1, target=9) == []
    # Newer than what is offered is no way to it.
    assert steps([delta(1, 5, 1), delta(5, 4, 1)], source=1, target=4) == []


def test_a_chain_has_no_more_steps_than_an_offer_holds() -> None:
    singles = [delta(number, number + 1, 1) for number in range(1, 20)]
    assert steps(singles, source=1, target=MAX_CHAIN + 1) == list(range(2, MAX_CHAIN + 2))
    assert steps(singles, source=1, target=MAX_CHAIN + 2) == []
    # The cheapest way to a version between may have too many steps left; a dearer one then leads there.
    assert steps([*singles, delta(1, 9, 100)], source=1, target=MAX_CHAIN + 5) == [9, *range(10, MAX_CHAIN + 6)]


@given(
    edges=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 50)), max_size=14),
    source=st.integers(1, 6),
    target=st.integers(1, 6),
)
def test_no_other_way_is_fewer_bytes(edges: list[tuple[int, int, int]], source: int, target: int) -> None:
    deltas = [delta(a, b, length) for a, b, length in edges if a < b]

    def best(version: int) -> float:
        if version == target:
            return 0
        return min((d.length + best(d.version) for d in deltas if d.source_version == version), default=math.inf)

    found = cheapest_chain(deltas, source=source, target=target)
    if source == target or best(source) == math.inf:
        assert found == ()
    else:
        assert sum(package.length for package in found) == best(source)


def test_of_chains_of_equal_length_one_is_taken() -> None:
    deltas = [make_package(version, source) for version, source in ((2, 1), (3, 1), (4, 2), (4, 3), (4, 1))]
    assert cheapest_chain(deltas, source=1, target=4)
