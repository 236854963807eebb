from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from simulators.server_home import make_package

from server.offers import cheapest_chain
from server.registry import PackageRecord
from server.retention import Field, dispensable


@st.composite
def fleets(draw: st.DrawFn) -> tuple[tuple[PackageRecord, ...], Field, int]:
    """A model's life: released versions, packages between some of them, devices and open offers."""
    newest = draw(st.integers(1, 9))
    released = draw(st.sets(st.integers(1, newest), min_size=1))
    signed = draw(st.sets(st.integers(1, newest)))
    packages = []
    for version in range(1, newest + 1):
        sources: list[int | None] = [None]
        sources += sorted(draw(st.sets(st.integers(1, version - 1)))) if version > 1 else []
        for source in sources:
            length = draw(st.integers(1, 50)) if source else 1000
            packages.append(PackageRecord(**{**vars(make_package(version, source)), "length": length}))
    field = Field(
        released=frozenset(released),
        installed=frozenset(draw(st.sets(st.integers(1, newest)))),
        wanted=frozenset(draw(st.sets(st.sampled_from(sorted(released))))),
        signed=frozenset(signed),
    )
    return tuple(packages), field, draw(st.integers(1, 4))


def ways(packages: list[PackageRecord], field: Field, source: int | None, target: int) -> Any:
    """All that the service would offer for this way: full, direct delta, cheapest chain."""
    of_released = [package for package in packages if package.version in field.released]
    direct = [p for p in of_released if p.version == target and p.source_version in {None, source}]
    deltas = [p for p in of_released if p.source_version is not None and p.version in field.signed]
    return direct, () if source is None else sum(p.length for p in cheapest_chain(deltas, source=source, target=target))


@given(fleets())
def test_whatever_a_device_may_be_offered_stays(fleet: tuple[tuple[PackageRecord, ...], Field, int]) -> None:
    packages, field, keep = fleet
    gone = dispensable(packages, field=field, keep_versions=keep)
    left = [package for package in packages if package not in gone]
    for target in {max(field.released)} | field.wanted:
        for source in {None} | field.installed:
            assert ways(left, field, source, target) == ways(list(packages), field, source, target)


@given(fleets())
def test_candidates_and_the_newest_versions_keep_their_full_packages(
    fleet: tuple[tuple[PackageRecord, ...], Field, int],
) -> None:
    packages, field, keep = fleet
    gone = dispensable(packages, field=field, keep_versions=keep)
    assert all(package.version in field.released for package in gone)
    newest = sorted(field.released)[-keep:]
    assert not [package for package in gone if package.version in newest and package.source_version is None]


@given(fleets())
def test_deciding_twice_removes_nothing_more(fleet: tuple[tuple[PackageRecord, ...], Field, int]) -> None:
    packages, field, keep = fleet
    gone = dispensable(packages, field=field, keep_versions=keep)
    left = tuple(package for package in packages if package not in gone)
    assert dispensable(left, field=field, keep_versions=keep) == ()


def test_old_packages_go_when_nobody_has_their_source() -> None:
    packages = tuple(make_package(version, source) for version in (1, 2, 3, 4) for source in (None, *range(1, version)))
    field = Field(
        released=frozenset({1, 2, 3, 4}), installed=frozenset({1}), wanted=frozenset(), signed=frozenset({3, 4})
    )
    gone = dispensable(packages, field=field, keep_versions=2)
    assert {(package.source_version, package.version) for package in packages if package not in gone} == {
        (None, 4),
        (None, 3),
        (3, 4),
        (1, 3),
        (1, 4),
    }
