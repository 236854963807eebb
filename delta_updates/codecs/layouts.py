"""Layouts: ways to arrange non-negative integers as bytes so that an entropy coder sees what is alike together.

Each layout is a list of streams that lie one after the other; their lengths follow from the number of values, for
LEADING also from the first stream. No layout is best everywhere: BITS wins while a third to most of the values are
zero or one, LEADING where they are spread or nearly all zero; the encoder measures.
"""

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.elements import Patterns
from delta_updates.errors import PackageFormatError

# LEADING: values below 16 are their own symbol; above, a symbol holds the bit length and the three bits after the top.
_OWN_SYMBOL = 16
_LEADING_BITS = 4
_STEPS = 8
_MAX_LEADING_WIDTH = 4


class Layout(IntEnum):
    """The layout's number in a package."""

    RAW = 0
    BITS = 1
    BYTES = 2
    LEADING = 3


def arrange(values: Patterns, layout: Layout) -> list[bytes]:
    """Return `values`, shape (n,), as streams."""
    if layout is Layout.BITS:
        return [_bit_plane(values, bit) for bit in range(8 * values.itemsize)]
    if layout is Layout.BYTES:
        planes = values.view(np.uint8).reshape(-1, values.itemsize).T
        return [np.ascontiguousarray(plane).tobytes() for plane in planes]
    if layout is Layout.LEADING:
        return _arrange_leading(values)
    return [values.tobytes()]


def restore(plain: bytes, count: int, width: int, layout: Layout) -> Patterns:
    """Return the `count` values of `width` bytes that `arrange` laid out.

    Raises:
        PackageFormatError: `plain` has another length, or symbols that no value has.
    """
    streams = _Streams(plain)
    if layout is Layout.BITS:
        values = np.zeros(count, dtype=f"<u{width}")
        for bit in range(8 * width):
            values |= streams.take_bits(count).astype(values.dtype) << values.dtype.type(bit)
    elif layout is Layout.BYTES:
        planes = streams.take(count * width).reshape(width, count)
        values = np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(count)
    elif layout is Layout.LEADING:
        values = _restore_leading(streams, count, width)
    else:
        values = streams.take(count * width).view(f"<u{width}")
    streams.finish()
    return values


class _Streams:
    """Takes one stream after the other; too few or too many bytes are refused."""

    def __init__(self, plain: bytes) -> None:
        self._bytes = np.frombuffer(plain, dtype=np.uint8)
        self._position = 0

    def take(self, length: int) -> NDArray[np.uint8]:
        end = self._position + length
        if end > len(self._bytes):
            raise PackageFormatError(f"payload of {len(self._bytes)} bytes ends inside a stream that ends at {end}")
        taken = self._bytes[self._position : end]
        self._position = end
        return taken

    def take_bits(self, count: int) -> NDArray[np.uint8]:
        return np.unpackbits(self.take((count + 7) // 8), count=count)

    def finish(self) -> None:
        if self._position != len(self._bytes):
            raise PackageFormatError(f"payload of {len(self._bytes)} bytes; its streams end at {self._position}")


def _bit_plane(values: Patterns, bit: int) -> bytes:
    return np.packbits(((values >> values.dtype.type(bit)) & values.dtype.type(1)).astype(np.uint8)).tobytes()


# What each symbol says: how far its leading bits are shifted, and those bits.
_SYMBOLS = np.arange(256, dtype=np.uint8)
_SHIFT_OF = np.where(_SYMBOLS < _OWN_SYMBOL, 0, (_SYMBOLS - np.uint8(_OWN_SYMBOL - _STEPS)) // _STEPS).astype(np.uint8)
_LEAD_OF = np.where(_SYMBOLS < _OWN_SYMBOL, _SYMBOLS, _STEPS + _SYMBOLS % _STEPS).astype(np.uint8)


def _symbols(values: Patterns) -> NDArray[np.uint8]:
    bit_lengths = np.frexp(values.astype(np.float32 if values.itemsize < _MAX_LEADING_WIDTH else np.float64))[1]
    shifts = np.maximum(bit_lengths - _LEADING_BITS, 0).astype(np.uint8)
    # A value of 16 or more has its top bit in the lead, so that a shift adds eight symbols.
    symbols: NDArray[np.uint8] = (values >> shifts).astype(np.uint8) + shifts * np.uint8(_STEPS)
    return symbols


def _arrange_leading(values: Patterns) -> list[bytes]:
    symbols = _symbols(values)
    streams = [symbols.tobytes()]
    for chosen, places, bits in _rests(symbols, values.itemsize):
        rest = (values[chosen] >> places.astype(values.dtype)).astype(np.uint8)
        streams.append(rest.tobytes() if bits > 1 else np.packbits(rest & np.uint8(1)).tobytes())
    return streams


def _restore_leading(streams: _Streams, count: int, width: int) -> Patterns:
    if width > _MAX_LEADING_WIDTH:
        raise PackageFormatError(f"layout LEADING holds values of at most {_MAX_LEADING_WIDTH} bytes, not {width}")
    symbols = streams.take(count)
    highest = int(symbols.max(initial=0))
    if highest >= _OWN_SYMBOL + _STEPS * (8 * width - _LEADING_BITS):
        raise PackageFormatError(f"symbol {highest} is too high for values of {width} bytes")
    values: Patterns = _LEAD_OF[symbols].astype(f"<u{width}") << _SHIFT_OF[symbols].astype(f"<u{width}")
    for chosen, places, bits in _rests(symbols, width):
        rest = streams.take(len(chosen)) if bits > 1 else streams.take_bits(len(chosen))
        values[chosen] |= rest.astype(values.dtype) << places.astype(values.dtype)
    return values


def _rests(symbols: NDArray[np.uint8], width: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8], int]]:
    """Yield what lies below the leading bits, plane by plane: which values, at which bit of each, how many bits.

    Whole bytes first, from bit 0 up; then bit by bit what is left between them and the leading bits.
    """
    shifts = _SHIFT_OF[symbols]
    for place in range(0, 8 * (width - 1), 8):
        chosen = np.flatnonzero(shifts >= place + 8)
        yield chosen, np.full(len(chosen), place, dtype=np.uint8), 8
    # A value that has a bit has all bits below it too: each plane looks only at what the one before kept.
    low_bits = shifts & np.uint8(7)
    chosen = np.flatnonzero(low_bits)
    low_bits, whole_bytes = low_bits[chosen], (shifts & np.uint8(0xF8))[chosen]
    for bit in range(7):
        has_bit = low_bits > bit
        chosen, low_bits, whole_bytes = chosen[has_bit], low_bits[has_bit], whole_bytes[has_bit]
        yield chosen, whole_bytes + np.uint8(bit), 1
