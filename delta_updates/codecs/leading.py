"""Leading symbols: one byte that says how large a number is, and the bits below, which are as good as random.

A scale has S symbols for each doubling. A value below 2 S is its own symbol. Above, the symbol holds the bit length and
the leading bits; what is left, the value's *rest*, travels in planes. A fine scale follows a distribution closely, a
coarse one needs a short table.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.elements import Patterns
from delta_updates.codecs.places import Places, places_of
from delta_updates.codecs.streams import Streams
from delta_updates.errors import PackageFormatError

Symbols = NDArray[np.uint8]

_MAX_WIDTH = 4
_FLOAT64_MANTISSA_BITS = 52
# Values of so many bytes find their symbol in a table that stays in the cache.
_TABLE_WIDTH = 2


class Scale:
    """Leading symbols with 2 ** `bits` of them for each doubling.

    Attributes:
        own: How many values are their own symbol; from here on a value has a rest.
        rest_bits: How many bits each of 256 symbols leaves out.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._steps = 1 << bits
        self.own: Final = 2 * self._steps
        symbols = np.arange(256)
        # What each symbol says: how far its leading bits are shifted, and those bits.
        self._shift_of = np.where(symbols < self.own, 0, symbols // self._steps - 1).astype(np.uint8)
        self._lead_of = np.where(symbols < self.own, symbols, self._steps + symbols % self._steps).astype(np.uint8)
        self.rest_bits = self._shift_of.astype(np.int64)
        self._symbol_of = self._compute(np.arange(1 << 8 * _TABLE_WIDTH, dtype=np.uint32))

    def symbols_of(self, values: Patterns) -> Symbols:
        """Return each value's symbol, shape (n,); values have at most 4 bytes."""
        return self._symbol_of.take(values) if values.itemsize <= _TABLE_WIDTH else self._compute(values)

    def _compute(self, values: Patterns) -> Symbols:
        # A float64 holds 32-bit integers exactly; its exponent and the top of its mantissa are what a symbol says.
        floats = np.maximum(values, values.dtype.type(self._steps)).astype(np.float64)
        leads = floats.view(np.uint64) >> np.uint64(_FLOAT64_MANTISSA_BITS - self._bits)
        lowest = np.float64(self._steps).view(np.uint64) >> np.uint64(_FLOAT64_MANTISSA_BITS - self._bits)
        symbols = (leads - (lowest - np.uint64(self._steps))).astype(np.uint8)
        return np.where(values < self._steps, values.astype(np.uint8), symbols)

    def rest_streams(self, symbols: Symbols, values: Patterns) -> list[bytes]:
        """Return the planes of what the symbols leave out; values without a rest may be missing on both sides."""
        streams = []
        for chosen, places, bits in self._rests(symbols, values.itemsize):
            rest = (values[chosen] >> places.astype(values.dtype)).astype(np.uint8)
            streams.append(rest.tobytes() if bits > 1 else np.packbits(rest & np.uint8(1)).tobytes())
        return streams

    def values_of(self, symbols: Symbols, streams: Streams, width: int) -> Patterns:
        """Return the values of `symbols`, shape (n,), with the rests that come next in `streams`.

        Raises:
            PackageFormatError: A symbol is too high for the width, or planes are missing.
        """
        if width > _MAX_WIDTH:
            raise PackageFormatError(f"leading symbols hold values of at most {_MAX_WIDTH} bytes, not {width}")
        highest = int(symbols.max(initial=0))
        if highest >= self._steps * (8 * width - self._bits + 1):
            raise PackageFormatError(f"symbol {highest} is too high for values of {width} bytes")
        values: Patterns = symbols.astype(f"<u{width}")
        if highest >= self.own:
            large = places_of(symbols >= self.own)
            values[large] = self._large_values(symbols.take(large), streams, width)
        return values

    def _large_values(self, symbols: Symbols, streams: Streams, width: int) -> Patterns:
        shifts, leads = self._shift_of.take(symbols), self._lead_of.take(symbols)
        values: Patterns = leads.astype(f"<u{width}") << shifts.astype(f"<u{width}")
        for chosen, places, bits in self._rests(symbols, width):
            rest = streams.take(len(chosen)) if bits > 1 else streams.take_bits(len(chosen))
            values[chosen] |= rest.astype(values.dtype) << places.astype(values.dtype)
        return values

    def _rests(self, symbols: Symbols, width: int) -> Iterator[tuple[Places, NDArray[np.uint8], int]]:
        """Yield what lies below the leading bits, plane by plane: which values, at which bit of each, how many bits.

        Whole bytes first, from bit 0 up; then bit by bit what is left between them and the leading bits.
        """
        shifts = self._shift_of.take(symbols)
        for place in range(0, 8 * (width - 1), 8):
            chosen = places_of(shifts >= place + 8)
            yield chosen, np.full(len(chosen), place, dtype=np.uint8), 8
        # A value that has a bit has all bits below it too: each plane looks only at what the one before kept.
        low_bits = shifts & np.uint8(7)
        chosen = places_of(low_bits != 0)
        low_bits, whole_bytes = low_bits[chosen], (shifts & np.uint8(0xF8))[chosen]
        for bit in range(7):
            has_bit = places_of(low_bits > bit)
            chosen, low_bits, whole_bytes = chosen[has_bit], low_bits[has_bit], whole_bytes[has_bit]
            yield chosen, whole_bytes + np.uint8(bit), 1


# Layout LEADING and the values of CLASSES; the gaps of CLASSES.
VALUES = Scale(3)
GAPS = Scale(2)
