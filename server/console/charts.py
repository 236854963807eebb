"""Charts as plain geometry, which a template draws as SVG; colours are the stylesheet's business."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from server.registry.fleet import Move

WIDTH, HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 30
_COLOURS: Final = 8
_TIME_TICKS: Final = 4
_MAX_AREAS: Final = 6
_DAY_S, _WEEK_S = 86_400.0, 7 * 86_400.0
# One pixel more or less is seen; more digits only cost bytes.
_DIGITS: Final = 1
_SAME: Final = 1e-6

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Shape:
    """A line's points or an area's outline, with the name and the colour of its series, and dots to point at."""

    name: str
    colour: int
    path: str
    dots: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing in `WIDTH` by `HEIGHT`, and its numbers as a table for who cannot see it."""

    title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Shape, ...] = ()
    areas: tuple[Shape, ...] = ()
    limit: Tick | None = None
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


def round_chart(
    title: str, values: Sequence[tuple[int, float]], *, name: str, from_zero: bool, limit: float | None = None
) -> Chart | None:
    """One value a round; None when there is no finite one.

    Args:
        title: What the chart shows.
        values: Rounds and values; those that are not finite are left out.
        name: What the values are called.
        from_zero: Begin the axis at 0, as for what is spent.
        limit: A value to draw a line at.
    """
    finite = [(x, y) for x, y in values if math.isfinite(y)]
    if not finite:
        return None
    heights = [y for _, y in finite] + ([limit] if limit is not None else []) + ([0.0] if from_zero else [])
    y_values = nice_ticks(min(heights), max(heights))
    place_x = _scale((finite[0][0], finite[-1][0]), (_LEFT + 8, WIDTH - _RIGHT - 8))
    place_y = _scale((y_values[0], y_values[-1]), (HEIGHT - _BOTTOM, _TOP))
    points = [(place_x(x), place_y(y)) for x, y in finite]
    step = max(1, math.ceil(len(finite) / 12))
    dots = tuple((*point, f"round {x}: {y:.4g}") for point, (x, y) in zip(points, finite, strict=True))
    return Chart(
        title=title,
        x_ticks=tuple(Tick(place_x(x), str(x)) for x, _ in finite[::step]),
        y_ticks=tuple(Tick(place_y(y), f"{y:.4g}") for y in y_values),
        lines=(Shape(name, 0, _points(points), dots),),
        limit=None if limit is None else Tick(place_y(limit), f"limit {limit:g}"),
        columns=("round", name),
        rows=tuple((str(x), f"{y:.4f}") for x, y in finite),
    )


def versions_chart(moves: Sequence[Move], *, now: datetime) -> Chart | None:
    """How many devices ran each version over time, stacked; None when there never were any."""
    times, counts = _grouped(*history(moves, now=now))
    if not times:
        return None
    totals = [sum(series[i] for series in counts.values()) for i in range(len(times))]
    y_values = nice_ticks(0, max(totals), whole=True)
    place_x = _scale((times[0].timestamp(), times[-1].timestamp()), (_LEFT, WIDTH - _RIGHT))
    place_y = _scale((0, y_values[-1]), (HEIGHT - _BOTTOM, _TOP))
    xs = [place_x(time.timestamp()) for time in times]
    floor, areas = [0] * len(times), []
    for colour, (name, series) in enumerate(counts.items()):
        roof = [below + own for below, own in zip(floor, series, strict=True)]
        outline = _steps(xs, [place_y(y) for y in roof]) + _steps(xs, [place_y(y) for y in floor])[::-1]
        areas.append(Shape(name, colour % _COLOURS, _points(outline)))
        floor = roof
    return Chart(
        title="Devices by version over time",
        x_ticks=_time_ticks(times[0], times[-1], xs),
        y_ticks=tuple(Tick(place_y(y), f"{y:g}") for y in y_values),
        areas=tuple(areas),
        columns=("time (UTC)", *counts),
        rows=tuple(
            (f"{time:%Y-%m-%d %H:%M}", *(str(series[i]) for series in counts.values())) for i, time in enumerate(times)
        ),
    )


def history(moves: Sequence[Move], *, now: datetime) -> tuple[list[datetime], dict[int | None, list[int]]]:
    """For each time at which something changed, and for now, how many devices ran each version (None: nothing yet)."""
    times: list[datetime] = []
    current: dict[int | None, int] = {}
    snapshots: list[dict[int | None, int]] = []
    for move in moves:
        if not move.is_new:
            # A device that had a version already when it enrolled was counted there, without a word of whence.
            source = move.source if current.get(move.source, 0) >= move.devices else None
            current[source] = max(0, current.get(source, 0) - move.devices)
        current[move.target] = current.get(move.target, 0) + move.devices
        if times and times[-1] == move.at:
            snapshots[-1] = dict(current)
        else:
            times.append(move.at)
            snapshots.append(dict(current))
    if times:
        times.append(max(now, times[-1]))
        snapshots.append(dict(current))
    versions = sorted({version for snapshot in snapshots for version in snapshot}, key=lambda v: v or 0)
    return times, {version: [snapshot.get(version, 0) for snapshot in snapshots] for version in versions}


def nice_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to eight round numbers that begin at or below ``low`` and end at or above ``high``."""
    # What differs only in digits that nobody draws is one height.
    if high - low <= _SAME * max(1.0, abs(low), abs(high)):
        low, high = (low, low + 1) if whole else (low - abs(low) * 0.05 - 0.01, high + abs(high) * 0.05 + 0.01)
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _grouped(
    times: list[datetime], counts: Mapping[int | None, list[int]]
) -> tuple[list[datetime], dict[str, list[int]]]:
    """Series with names; when there are many versions, the older ones together."""
    numbers = [version for version in counts if version is not None]
    older, newest = numbers[:-_MAX_AREAS], numbers[-_MAX_AREAS:]
    named: dict[str, list[int]] = {}
    if any(counts.get(None, [])):
        named["nothing yet"] = counts[None]
    if older:
        named["older"] = [sum(counts[version][i] for version in older) for i in range(len(times))]
    return times, named | {f"v{version}": counts[version] for version in newest}


class _scale:  # noqa: N801 - used as a function
    """Maps one interval onto another."""

    def __init__(self, source: Point, target: Point) -> None:
        self._low, self._length = source[0], source[1] - source[0]
        self._start, self._end = target

    def __call__(self, value: float) -> float:
        share = (value - self._low) / self._length if self._length else 0.5
        return round(self._start + share * (self._end - self._start), _DIGITS)


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _steps(xs: Sequence[float], ys: Sequence[float]) -> list[Point]:
    """A staircase: a number of devices stays until it changes."""
    stairs: list[Point] = []
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if i:
            stairs.append((x, ys[i - 1]))
        stairs.append((x, y))
    return stairs


def _time_ticks(first: datetime, last: datetime, xs: Sequence[float]) -> tuple[Tick, ...]:
    span_s = (last - first).total_seconds()
    form = "%H:%M" if span_s < _DAY_S else "%d %b %H:%M" if span_s < _WEEK_S else "%d %b"
    form = form if first.year == last.year or span_s < _WEEK_S else "%d %b %Y"
    return tuple(
        Tick(
            round(xs[0] + (xs[-1] - xs[0]) * i / _TIME_TICKS, _DIGITS),
            (first + (last - first) * i / _TIME_TICKS).strftime(form),
        )
        for i in range(_TIME_TICKS + 1)
    )
