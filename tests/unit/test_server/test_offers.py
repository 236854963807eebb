from simulators.server_home import MODEL, Home, make_manifest, make_package, release

from delta_updates import UpdateQuery
from server.offers import choose_package
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
