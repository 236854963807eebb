"""Noise that is correlated over rounds, so that much of it cancels in the model, which is the sum of all rounds.

The rounds' sums x_1, ..., x_T are released as x + C^-1 z with independent unit noise z: as private as C x + z. C is
lower triangular and Toeplitz, with the first coefficients of the square root of the matrix that adds up prefixes, and
zeros below the bands. A user who takes part k times, at least `bands` rounds apart, moves C x by columns that do not
overlap: by at most sqrt(k) clipping norms, with columns of norm 1. So nothing is assumed about who is drawn.

Sources: Fichtenberger, Henzinger, Upadhyay, "Constant Matters", ICML 2023 (the square root); Choquette-Choo et al.,
"(Amplified) Banded Matrix Factorization", NeurIPS 2023 (bands and separation); Kalinin, Lampert, "Banded Square Root
Matrix Factorization for Differentially Private Model Training", NeurIPS 2024.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MAX_BANDS: Final = 1024


def coefficients(bands: int) -> NDArray[np.float64]:
    """The first column of C: the first `bands` coefficients of (1 - x)^(-1/2), scaled to norm 1; shape (bands,)."""
    if not 1 <= bands <= _MAX_BANDS:
        raise ValueError(f"bands must lie between 1 and {_MAX_BANDS}, not {bands}")
    steps = np.arange(1, bands, dtype=np.float64)
    column = np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])
    return np.asarray(column / np.linalg.norm(column), dtype=np.float64)


def sensitivity(rounds: Sequence[int], *, bands: int) -> float:
    """How far one user who took part in `rounds` can move C x, in clipping norms.

    sqrt(k) where they are at least `bands` apart. Where they are not, bands overlap, and the worst user adds them up:
    sqrt(sum over all pairs of the product of their columns), as no coefficient is negative.
    """
    column = coefficients(bands)
    overlap = [float(column[gap:] @ column[: bands - gap]) for gap in range(bands)]
    gaps = (abs(first - second) for first in rounds for second in rounds)
    return math.sqrt(sum(overlap[gap] for gap in gaps if gap < bands))
