"""The lineage of a model's versions as a graph: which one was made from which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.registry import VersionRecord

_LANE, _ROW, _MARGIN, _TEXT = 26, 40, 20, 250
_MAX_VERSIONS: Final = 40


@dataclass(frozen=True)
class Node:
    """A version's place in the graph."""

    version: VersionRecord
    x: int
    y: int


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Nodes from the newest down, the paths from parent to child, and how large the drawing is."""

    nodes: tuple[Node, ...]
    paths: tuple[str, ...]
    text_x: int
    width: int
    height: int
    left_out: int


def lineage(versions: Sequence[VersionRecord]) -> Lineage:
    """Place the newest versions below each other; the first child goes on in its parent's lane, others beside it."""
    shown = versions[-_MAX_VERSIONS:]
    lanes = _lanes(shown)
    rows = {version.number: row for row, version in enumerate(reversed(shown))}
    places = {n: (_MARGIN + lanes[n] * _LANE, _MARGIN + rows[n] * _ROW) for n in lanes}
    text_x = 2 * _MARGIN + max(lanes.values(), default=0) * _LANE
    return Lineage(
        nodes=tuple(Node(version, *places[version.number]) for version in reversed(shown)),
        paths=tuple(
            _path(places[version.manifest.parent], places[version.number])
            for version in shown
            if version.manifest.parent in places
        ),
        text_x=text_x,
        width=text_x + _TEXT,
        height=2 * _MARGIN + (len(shown) - 1) * _ROW,
        left_out=len(versions) - len(shown),
    )


def _lanes(versions: Sequence[VersionRecord]) -> dict[int, int]:
    lanes: dict[int, int] = {}
    continued: set[int] = set()
    for version in versions:
        parent = version.manifest.parent
        if parent in lanes and parent not in continued:
            lanes[version.number] = lanes[parent]
            continued.add(parent)
        else:
            lanes[version.number] = max(lanes.values(), default=-1) + 1
    return lanes


def _path(parent: tuple[int, int], child: tuple[int, int]) -> str:
    """From a parent up to its child; across lanes by a curve right above the parent."""
    (from_x, from_y), (to_x, to_y) = parent, child
    if from_x == to_x:
        return f"M{from_x} {from_y}V{to_y}"
    bend = from_y - _ROW
    return f"M{from_x} {from_y}C{from_x} {bend} {to_x} {from_y} {to_x} {bend}V{to_y}"
