"""Find the thin factors of what a matrix moved by: the builder's side of codec `low_rank`.

What is seen of a change is rounded to the floats of the target: an entry that did not move says no more than that it
moved by less than half a step. So after a first guess by subspace iteration, entries are let off where the guess
already rounds to the right float, and drawn to the nearest that does where it does not: projections in turn onto the
matrices of a rank and onto those that explain every float. One pass over the matrix, strip by strip, does one of each.

Sources: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), for subspace iteration; Agmon, "The
relaxation method for linear inequalities" (1954), for going further than the edge.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.elements import FLOAT_FIELDS, ElementKind, Patterns
from delta_updates.codecs.factors import MAX_FACTOR, MAX_RANK, MAX_SHIFT, Factors
from delta_updates.codecs.prediction import reals_of

Matrix = NDArray[np.float32]
Small = NDArray[np.float64]

# Below, a matrix is too small for its factors to pay.
_FEWEST_ROWS = 64
# Looked at first, and where those have too many components.
_SOME_ROWS = (128, 512)
_ROWS_EACH = 3
_STRIP_ELEMENTS = 1 << 16
# How many components are looked for: more only where all of these are of use. Ranks of adapters are mostly
# multiples of eight, and a component that is nothing but noise rounds to zeros.
_WIDTHS = (12, 36, MAX_RANK + 4)
_RANK_STEP = 8
_FIRST_PASSES = 2
_PASSES = 3
_RELAXATION = np.float32(1.95)
# A number of a factor costs about so many bits; a component that saves less than half of them may be noise.
_FACTOR_BITS = 10
_NOISE_SHARE = 0.5
_ABOVE_NOISE = 1.5
# Of the values that changed, an adapter leaves at most half unexplained, and other training at least two thirds.
_MOST_MISSED = 0.6
_NEARER = np.float32(1 / 64)
# How far rounding the factors may put the product off, in steps of a usual value.
_ERROR_STEPS = 0.03
_SAMPLE_STEP = 97
_DEPENDENT = 1e-9
# What moved further is no weight; its square would not be finite.
_LARGEST = 2.0**32


@dataclass(frozen=True, slots=True)
class _Change:
    """By how much each entry moved, shape (rows, columns), and between what that rounds to the same float."""

    moved: Matrix
    lowest: Matrix
    highest: Matrix

    @property
    def usual_step(self) -> float:
        """The distance of usual values from the next."""
        some = slice(None, None, _SAMPLE_STEP)
        return float(np.median(self.highest.reshape(-1)[some] - self.lowest.reshape(-1)[some]))

    def strips(self) -> Iterator[slice]:
        """Yield rows that stay in the cache together."""
        rows = max(_STRIP_ELEMENTS // self.moved.shape[1], 1)
        for first in range(0, len(self.moved), rows):
            yield slice(first, first + rows)


@dataclass(frozen=True, slots=True)
class _Components:
    """The matrix left @ right.T, its singular values in descending order, and the energy of what it leaves over."""

    left: Matrix
    right: Matrix
    strengths: Small
    left_over: float

    def significant(self) -> int:
        """Return how many components, the strongest first, save more than noise would."""
        entries, numbers = len(self.left) * len(self.right), len(self.left) + len(self.right)
        energies = np.square(self.strengths)
        # What is left after each component: that of the weaker ones, and of all that are not here.
        left_over = self.left_over + np.append(np.cumsum(energies[::-1])[-2::-1], 0)
        saved = energies * entries > 2 * np.log(2) * _NOISE_SHARE * _FACTOR_BITS * numbers * left_over
        return int(np.append(saved, [False]).argmin())

    def are_all_above_noise(self) -> bool:
        """Return whether the weakest is stronger than any of a matrix of noise as strong as what is left over.

        Source: Marchenko and Pastur (1967), for the largest singular value of noise.
        """
        rows, columns = len(self.left), len(self.right)
        edge = (np.sqrt(rows) + np.sqrt(columns)) ** 2 / (rows * columns)
        return len(self.strengths) > 0 and bool(self.strengths[-1] ** 2 > _ABOVE_NOISE * edge * self.left_over)

    def strongest(self, rank: int) -> "_Components":
        """Return the first components alone."""
        weaker = float(np.square(self.strengths[rank:]).sum())
        return _Components(self.left[:, :rank], self.right[:, :rank], self.strengths[:rank], self.left_over + weaker)


def find_factors(old: Patterns, new: Patterns, kind: ElementKind, *, columns: int) -> Factors | None:
    """Return factors whose product moves `old` near to `new`, both of shape (rows * columns,).

    None where no thin product explains enough of the change to be worth its bytes.
    """
    rows = len(old) // columns
    if min(rows, columns) < _FEWEST_ROWS:
        return None
    old, new = old.reshape(rows, columns), new.reshape(rows, columns)
    probe = _probe(old, new, kind)
    if probe is None:
        return None
    change = _change(old, new, kind)
    components = _components(change, start=probe.right)
    rank = min(-(-components.significant() // _RANK_STEP) * _RANK_STEP, len(components.strengths), MAX_RANK)
    if not 0 < rank * (rows + columns) <= rows * columns:
        return None
    refined = _refined(change, components.strongest(rank))
    return _rounded(refined, step=change.usual_step)


def _probe(old: Patterns, new: Patterns, kind: ElementKind) -> _Components | None:
    """Return the components of some rows, at a small part of the cost; None where no adapter made the change."""
    for count in _SOME_ROWS:
        some = slice(0, None, max(len(old) // count, 1))
        change = _change(old[some], new[some], kind)
        components = _components(change)
        # Nearly as many components as rows explain anything.
        if len(components.strengths) * _ROWS_EACH <= len(change.moved):
            break
    if not components.strongest(1).are_all_above_noise():
        return None
    return components if _is_explained(change, _refined(change, components)) else None


def _change(old: Patterns, new: Patterns, kind: ElementKind) -> _Change:
    change = _Change(*(np.empty(old.shape, np.float32) for _ in range(3)))
    half_step = np.float32(2.0 ** -(FLOAT_FIELDS[kind].mantissa_bits + 1))
    for rows in change.strips():
        with np.errstate(over="ignore", invalid="ignore"):
            reals = reals_of(new[rows].reshape(-1), kind)
            moved = (reals - reals_of(old[rows].reshape(-1), kind)).astype(np.float32, copy=False)
            # A float32 without its mantissa is the length of its octave.
            octaves = (reals.astype(np.float32, copy=False).view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
        moved[~(np.abs(moved) < _LARGEST)] = 0
        moved, half_steps = moved.reshape(-1, old.shape[1]), (octaves * half_step).reshape(-1, old.shape[1])
        change.moved[rows] = moved
        np.subtract(moved, half_steps, out=change.lowest[rows])
        np.add(moved, half_steps, out=change.highest[rows])
    return change


def _is_explained(change: _Change, components: _Components) -> bool:
    """Return whether a product rounds to most of the floats that changed, or comes much nearer to them."""
    nearer = np.maximum((change.highest - change.lowest) / 2, np.abs(change.moved) * _NEARER)
    missed = np.abs(components.left @ components.right.T - change.moved) > nearer
    return bool(np.count_nonzero(missed) <= _MOST_MISSED * np.count_nonzero(change.moved))


def _components(change: _Change, *, start: Matrix | None = None) -> _Components:
    """Return the strongest components of a matrix, more of them as long as none is noise."""
    # Row by row: what is left over is a millionth of it at times, and must not be lost in a long sum of floats.
    total = float(np.einsum("ij,ij->i", change.moved, change.moved).sum(dtype=np.float64))
    for width in _WIDTHS:
        count = min(width, *change.moved.shape)
        # Without a better start, the matrix's own rows: they are near to where its components lie.
        right = change.moved[:: max(len(change.moved) // count, 1)][:count].T if start is None else start
        for _ in range(_FIRST_PASSES if start is None else 1):
            left, right = _passed(change, right)
        components, start = _ordered(left, right, total=total), None
        if right.shape[1] < count or not components.are_all_above_noise():
            break
    return components


def _refined(change: _Change, components: _Components) -> _Components:
    left, right = components.left, components.right
    for _ in range(_PASSES):
        left, right = _passed(change, right, guess=left)
    return _ordered(left, right, total=components.left_over + float(np.square(components.strengths).sum()))


def _passed(change: _Change, right: Matrix, guess: Matrix | None = None) -> tuple[Matrix, Matrix]:
    """Return one step of subspace iteration: orthonormal columns on the left, and what they make of the matrix.

    The matrix is what moved, or with a guess of the left side, what the floats allow that is near to the guess.
    """
    towards = right @ _orthonormal_turn(right)
    unturned = np.empty((len(change.moved), towards.shape[1]), np.float32)
    across = np.zeros(towards.shape, np.float64)
    for rows in change.strips():
        matrix = change.moved[rows] if guess is None else _allowed(change, rows, guess[rows] @ right.T)
        unturned[rows] = matrix @ towards
        across += matrix.T @ unturned[rows]
    turn = _orthonormal_turn(unturned)
    return unturned @ turn, (across @ turn).astype(np.float32)


def _allowed(change: _Change, rows: slice, guess: Matrix) -> Matrix:
    """Return the guess, moved towards and beyond the nearest that rounds to the target's floats; it is overwritten."""
    nearest = np.maximum(guess, change.lowest[rows])
    np.minimum(nearest, change.highest[rows], out=nearest)
    nearest *= _RELAXATION
    guess *= 1 - _RELAXATION
    nearest += guess
    return nearest


def _orthonormal_turn(columns: Matrix) -> Matrix:
    """Return what makes columns orthonormal, without those that depend on others."""
    wide = columns.astype(np.float64)
    strengths, turn = np.linalg.eigh(wide.T @ wide)
    is_kept = strengths > _DEPENDENT * max(strengths.max(initial=0), np.finfo(np.float32).tiny)
    result: Matrix = (turn[:, is_kept] / np.sqrt(strengths[is_kept])).astype(np.float32)
    return result


def _ordered(left: Matrix, right: Matrix, *, total: float) -> _Components:
    """Turn a product with an orthonormal left side to its singular vectors, the strongest first."""
    wide = right.astype(np.float64)
    energies, turn = np.linalg.eigh(wide.T @ wide)
    energies, turn = np.maximum(energies[::-1], 0), turn[:, ::-1].astype(np.float32)
    return _Components(left @ turn, right @ turn, np.sqrt(energies), max(total - float(energies.sum()), 0.0))


def _rounded(components: _Components, *, step: float) -> Factors | None:
    """Return the product as whole numbers; `step` is the distance of usual values."""
    roots = np.sqrt(np.maximum(components.strengths, np.finfo(np.float32).tiny))
    left, right = components.left * roots, components.right / roots
    spread = np.sqrt((np.square(left).sum() / len(left) + np.square(right).sum() / len(right)) / 12)
    largest = max(float(np.abs(left).max()), float(np.abs(right).max()))
    if not (spread > 0 and step > 0):
        return None
    # Half the shift is each side's; a power of two, so that the device scales exactly.
    half_shift = -int(np.ceil(np.log2(max(_ERROR_STEPS * step / spread / 2, largest / MAX_FACTOR))))
    if abs(2 * half_shift) > MAX_SHIFT:
        return None
    return Factors(np.rint(left * 2.0**half_shift), np.rint(right * 2.0**half_shift), 2 * half_shift)
