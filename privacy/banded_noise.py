"""A run's correlated noise, round by round; the mathematics, and what it costs, are in `privacy.banded_matrix`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.banded_matrix import coefficients
from privacy.keyed_random import KeyedRandom

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BandedNoise:
    """A run's noise, round by round: the same `key` gives the same noise, so that a run goes on after a crash.

    Whoever has the key can subtract the noise. It keeps the last `bands - 1` rounds' noise in memory, 8 bytes a value.
    """

    def __init__(self, key: bytes, *, bands: int) -> None:
        self._key = key
        self._column = coefficients(bands)
        self._recent: list[NDArray[np.float64]] = []  # the newest first
        self._round = 0

    def at(self, server_round: int, *, count: int) -> NDArray[np.float64]:
        """The noise of a round (from 1), to be scaled by clipping norm and noise multiplier; shape (count,).

        Rounds that were left out, because they were void or before a crash, are made again first.
        """
        if server_round < self._round or any(noise.size != count for noise in self._recent):
            self._recent, self._round = [], 0
        while self._round < server_round:
            self._advance(count)
        return self._recent[0]

    def _advance(self, count: int) -> None:
        self._round += 1
        noise = KeyedRandom(self._key, stream=self._round).normals(count)
        for coefficient, earlier in zip(self._column[1:], self._recent, strict=False):
            noise -= coefficient * earlier
        noise /= self._column[0]
        self._recent = [noise, *self._recent][: max(1, self._column.size - 1)]
