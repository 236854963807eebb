"""Factors: a change of a matrix as the product of two thin ones, in whole numbers.

A product of whole numbers whose sums stay below 2 ** 53 is exact in float64, in whatever order it is added up: BLAS
gives the same on every machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from delta_updates.codecs.elements import unzigzag, zigzag
from delta_updates.codecs.leading import VALUES
from delta_updates.codecs.streams import Streams
from delta_updates.errors import PackageFormatError

MAX_RANK = 64
MAX_FACTOR = 1 << 22
MAX_SHIFT = 90
_HEAD = np.dtype([("rank", "<u2"), ("shift", "<i2"), ("columns", "<u4")])
_CODE_WIDTH = 4
# Whole numbers up to here are exact in float32, whose products take half the time.
_EXACT_IN_FLOAT32 = 1 << 24

Reals = NDArray[np.float32] | NDArray[np.float64]
WholeNumbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factors:
    """The matrix left @ right.T * 2 ** -shift.

    Attributes:
        left: Whole numbers up to MAX_FACTOR in magnitude, shape (rows, rank).
        right: The same, shape (columns, rank).
        shift: From -MAX_SHIFT to MAX_SHIFT.
    """

    left: WholeNumbers
    right: WholeNumbers
    shift: int

    def product(self, *, rows: int, number: DTypeLike) -> Iterator[Reals]:
        """Yield so many rows of the matrix at a time, one row after the other, as rounded floats of a type."""
        largest = np.abs(self.left).max() * np.abs(self.right).max() * self.left.shape[1]
        exact = np.dtype(np.float32 if largest < _EXACT_IN_FLOAT32 else np.float64)
        left: Reals = self.left.astype(exact)
        right: Reals = self.right.T.astype(exact)
        for first in range(0, len(left), rows):
            product: Reals = left[first : first + rows] @ right
            product *= exact.type(2.0**-self.shift)
            yield product.reshape(-1).astype(number, copy=False)

    def to_streams(self) -> list[bytes]:
        """Return them as bytes: leading symbols of each component's side, then what those leave out."""
        head = np.array([(self.left.shape[1], self.shift, len(self.right))], dtype=_HEAD)
        codes = [_codes(column) for side in (self.left, self.right) for column in side.T]
        joined = np.concatenate(codes)
        symbols = VALUES.symbols_of(joined)
        parts = np.split(symbols, np.cumsum([len(code) for code in codes])[:-1])
        return [head.tobytes(), *[part.tobytes() for part in parts], *VALUES.rest_streams(symbols, joined)]


def read_factors(streams: Streams, elements: int) -> Factors:
    """Return the factors that come next in `streams`, of a matrix of so many elements.

    Raises:
        PackageFormatError: They are not well-formed.
    """
    rank, shift, columns = streams.take(_HEAD.itemsize).view(_HEAD)[0].tolist()
    if not 1 <= rank <= MAX_RANK or abs(shift) > MAX_SHIFT or not columns or elements % columns:
        raise PackageFormatError(f"factors of rank {rank}, shift {shift} and {columns} columns for {elements} values")
    rows = elements // columns
    if rank * (rows + columns) > elements:
        raise PackageFormatError(f"factors of rank {rank} are more numbers than the {elements} values that they move")
    codes = VALUES.values_of(streams.take(rank * (rows + columns)), streams, _CODE_WIDTH)
    # Zigzag: even codes are a number and above, odd ones below zero.
    if int(codes.max(initial=0)) > 2 * MAX_FACTOR:
        raise PackageFormatError(f"a factor has the code {int(codes.max())}; the highest is {2 * MAX_FACTOR}")
    numbers = unzigzag(codes).view(np.int32).astype(np.float64)
    left, right = numbers[: rank * rows].reshape(rank, rows), numbers[rank * rows :].reshape(rank, columns)
    return Factors(np.ascontiguousarray(left.T), np.ascontiguousarray(right.T), shift)


def _codes(column: WholeNumbers) -> NDArray[np.uint32]:
    codes: NDArray[np.uint32] = zigzag(column.astype("<i4").view("<u4"))
    return codes
