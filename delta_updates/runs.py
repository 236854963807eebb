"""Where two byte strings say the same: at the same place, or moved by what was put in or taken out."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# A multiple of every element's width.
_BLOCK_BYTES: Final = 64
_WINDOW_BYTES: Final = 8
# An odd number without pattern (2^64 over the golden ratio): close windows get distant hashes.
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
# One window in 2^12 cuts: chunks of 4 kB in the mean.
_CUT_BITS: Final = np.uint64(12)
_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """A range of the new bytes; ``source`` is where the old ones say the same, None: nowhere."""

    start: int
    end: int
    source: int | None


def equal_runs(new: bytes, old: bytes, *, least: int) -> list[Run]:
    """Cut two strings of one length into runs that are equal, in blocks of 64 bytes, and runs that are not, in turn.

    Args:
        new: What is wanted.
        old: What is there.
        least: Equal bytes that are not worth a run of their own when they are fewer.
    """
    starts = np.arange(0, len(new), _BLOCK_BYTES)
    differs = np.frombuffer(new, np.uint8) != np.frombuffer(old, np.uint8)
    is_equal = ~np.logical_or.reduceat(differs, starts)
    edges = [0, *(np.flatnonzero(np.diff(is_equal)) + 1).tolist(), len(starts)]
    found = [
        Run(first * _BLOCK_BYTES, end, first * _BLOCK_BYTES if is_equal[first] else None)
        for first, last in itertools.pairwise(edges)
        for end in [min(last * _BLOCK_BYTES, len(new))]
    ]
    return _joined(run if run.end - run.start >= least else Run(run.start, run.end, None) for run in found)


def moved_runs(new: bytes, old: bytes, *, least: int) -> list[Run]:
    """Find what of the new bytes stands anywhere in the old ones, also after something was put in before it.

    Both are cut where their content says so (Muthitacharoen et al., "A Low-bandwidth Network File System", SOSP 2001),
    so that a change moves the cuts beside it alone; equal chunks are then grown to both sides.

    Args:
        new: What is wanted.
        old: What is there.
        least: Equal bytes that are not worth a run of their own when they are fewer.
    """
    there: dict[bytes, int] = {}
    for start, end in _chunks(old):
        there.setdefault(hashlib.sha256(old[start:end]).digest(), start)
    found = _joined(Run(start, end, there.get(hashlib.sha256(new[start:end]).digest())) for start, end in _chunks(new))
    grown = _grown(found, np.frombuffer(new, np.uint8), np.frombuffer(old, np.uint8))
    return _joined(run if run.end - run.start >= least else Run(run.start, run.end, None) for run in grown)


def _chunks(raw: bytes) -> Iterator[tuple[int, int]]:
    cuts = (start + cut for start in range(0, len(raw), _AT_ONCE) for cut in _cuts(raw, start))
    return itertools.pairwise(dict.fromkeys([0, *cuts, len(raw)]))


def _cuts(raw: bytes, start: int) -> list[int]:
    """Return the ends of windows that cut, among those that begin in one part."""
    part = np.frombuffer(raw[start : start + _AT_ONCE + _WINDOW_BYTES - 1], np.uint8)
    count = len(part) - _WINDOW_BYTES + 1
    if count <= 0:
        return []
    window = np.zeros(count, np.uint64)
    for place in range(_WINDOW_BYTES):
        window |= part[place : place + count].astype(np.uint64) << np.uint64(8 * place)
    hashed = (window * _MIX) >> (np.uint64(64) - _CUT_BITS)
    ends: list[int] = (np.flatnonzero(hashed == 0) + _WINDOW_BYTES).tolist()
    return ends


def _grown(runs: list[Run], new: NDArray[np.uint8], old: NDArray[np.uint8]) -> Iterator[Run]:
    """Let runs that were found take what is equal beside them from those that were not."""
    done = 0
    for index, run in enumerate(runs):
        if run.source is not None:
            yield Run(done, run.end, run.source - (run.start - done))
            done = run.end
            continue
        before, after = runs[index - 1] if index else None, runs[index + 1] if index + 1 < len(runs) else None
        if before is not None and before.source is not None:
            source = before.source + before.end - before.start
            length = min(run.end - done, len(old) - source)
            same = _equal_at_start(new[done : done + length], old[source : source + length])
            yield Run(done, done + same, source)
            done += same
        start = run.end
        if after is not None and after.source is not None:
            length = min(run.end - done, after.source)
            start -= _equal_at_start(
                new[run.end - length : run.end][::-1], old[after.source - length : after.source][::-1]
            )
        yield Run(done, start, None)
        done = start


def _equal_at_start(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    differs = np.flatnonzero(one != other)
    return int(differs[0]) if differs.size else len(one)


def _joined(runs: Iterator[Run]) -> list[Run]:
    """The same runs, without empty ones, and neighbours that go on from each other as one."""
    found: list[Run] = []
    for run in runs:
        if run.start == run.end:
            continue
        last = found[-1] if found else None
        goes_on = last is not None and (
            run.source is None if last.source is None else run.source == last.source + last.end - last.start
        )
        found.append(Run(found.pop().start, run.end, last.source) if last is not None and goes_on else run)
    return found
