"""The way that a device would be offered, in words for people: which packages, and why not the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from delta_updates import UpdateQuery
from server.errors import ConflictError
from server.room import Room, disk_bytes
from server.ways import Question, usable_packages, way_to

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from server.registry import DeviceRecord, PackageRecord, Registry
    from server.rollouts import Explanation
    from server.ways import Chain, Signed, Way

_MEGABYTE: Final = 1_000_000
_GIGABYTE: Final = 1_000_000_000


def told(registry: Registry, signed: Signed, device: DeviceRecord, decided: Explanation) -> tuple[str, ...]:
    """By which packages a decision would be carried out, from what the device said last; empty when it stays.

    Memory does not choose: a device applies every package in the same bounded memory.
    """
    if decided.version is None or not decided.is_move:
        return ()
    query = UpdateQuery(
        model=device.model, installed_version=device.installed_version, installed_hash=device.installed_hash
    )
    room = Room(free_bytes=device.free_bytes)
    asked = Question(
        registry=registry,
        standing=registry.standing(),
        signed=signed,
        device_id=device.device_id,
        query=query,
        room=room,
    )
    try:
        way = way_to(asked, decided.version, decided.rollout_id)
    except ConflictError as error:
        return (str(error),)
    return () if way is None else (_first(way), *_others(asked, way), _of_room(device))


def _first(way: Way) -> str:
    if not way.chain:
        return f"It gets {_named(way.package)}, {_size(way.package.length)}."
    length = sum(package.length for package, _ in way.chain)
    return (
        f"It gets {len(way.chain)} deltas one after the other, {_steps(way.chain)}, {_size(length)} in all; where one "
        f"does not work, {_named(way.package)}, {_size(way.package.length)}."
    )


def _others(asked: Question, way: Way) -> Iterator[str]:
    """What was there as well, and why it was not taken."""
    usable, source = usable_packages(asked, way.version)
    has = None if source is None else source.manifest
    for package in usable:
        if package.path == way.package.path:
            continue
        trees = (None if package.source_version is None else has, way.version.manifest)
        if missing := asked.room.missing((package,), trees):
            why = f"it needs {_size(disk_bytes((package,), trees))} on the disk, {_size(missing)} more than are free"
        else:
            why = f"its {_size(package.length)} are more to fetch"
        yield f"Not {_named(package)}: {why}."
    if asked.query.installed_version is not None and all(package.source_version is None for package in usable):
        yield _no_delta(asked, source is not None and source.manifest.tree_hash == asked.query.installed_hash)


def _no_delta(asked: Question, is_known: bool) -> str:  # noqa: FBT001 - one fact of one sentence
    if is_known:
        return f"No delta straight from v{asked.query.installed_version} is kept for it."
    return f"No delta: its bytes are not those of v{asked.query.installed_version}, or that is not known here."


def _of_room(device: DeviceRecord) -> str:
    if device.free_bytes is None:
        return "It did not say how much of its disk is free."
    return f"It last said that {_size(device.free_bytes)} of its disk are free for an update."


def _named(package: PackageRecord) -> str:
    return "the full package" if package.source_version is None else f"the delta from v{package.source_version}"


def _steps(chain: Chain) -> str:
    versions: Sequence[int | None] = [chain[0][0].source_version, *(made.number for _, made in chain)]
    return " → ".join(f"v{version}" for version in versions)


def _size(length: int) -> str:
    if length >= _GIGABYTE:
        return f"{length / _GIGABYTE:,.1f} GB"
    return f"{length / _MEGABYTE:.3f} MB" if length < _MEGABYTE else f"{length / _MEGABYTE:.1f} MB"
