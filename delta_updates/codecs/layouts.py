"""Layouts: ways to arrange non-negative integers as bytes so that an entropy coder sees what is alike together.

Each layout is a list of streams that lie one after the other; their lengths follow from the number of values, for
LEADING also from the first stream. BITS and LEADING with sorted values are what packages of format 1 hold; today's
builder writes differences as CLASSES (`classes.py`), which knows more.
"""

from enum import IntEnum

import numpy as np

from delta_updates.codecs.elements import Patterns
from delta_updates.codecs.leading import VALUES
from delta_updates.codecs.streams import Streams
from delta_updates.errors import PackageFormatError


class Layout(IntEnum):
    """The layout's number in a package."""

    RAW = 0
    BITS = 1
    BYTES = 2
    LEADING = 3
    CLASSES = 4


def arrange(values: Patterns, layout: Layout) -> list[bytes]:
    """Return `values`, shape (n,), as streams of RAW or BYTES, which are all that `full` writes."""
    if layout is Layout.BYTES:
        planes = values.view(np.uint8).reshape(-1, values.itemsize).T
        return [np.ascontiguousarray(plane).tobytes() for plane in planes]
    return [values.tobytes()]


def restore(plain: bytes, count: int, width: int, layout: Layout) -> Patterns:
    """Return the `count` values of `width` bytes that are laid out in `plain`.

    Raises:
        PackageFormatError: `plain` has another length, or symbols that no value has; or the layout is CLASSES, which
            needs contexts.
    """
    streams = Streams(plain)
    if layout is Layout.RAW:
        values = streams.take(count * width).view(f"<u{width}")
    elif layout is Layout.BITS:
        values = np.zeros(count, dtype=f"<u{width}")
        for bit in range(8 * width):
            values |= streams.take_bits(count).astype(values.dtype) << values.dtype.type(bit)
    elif layout is Layout.BYTES:
        planes = streams.take(count * width).reshape(width, count)
        values = np.ascontiguousarray(planes.T).view(f"<u{width}").reshape(count)
    elif layout is Layout.LEADING:
        values = VALUES.values_of(streams.take(count), streams, width)
    else:
        raise PackageFormatError(f"layout {layout.name} needs old values")
    streams.finish()
    return values
