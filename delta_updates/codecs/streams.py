"""Plain bytes as one stream after the other; what a reader takes is bounded by what is there."""

import numpy as np
from numpy.typing import NDArray

from delta_updates.errors import PackageFormatError


class Streams:
    """Takes one stream after the other; too few or too many bytes are refused."""

    def __init__(self, plain: bytes) -> None:
        self._bytes = np.frombuffer(plain, dtype=np.uint8)
        self._position = 0

    def take(self, length: int) -> NDArray[np.uint8]:
        """Return the next `length` bytes, shape (length,).

        Raises:
            PackageFormatError: So many are not left.
        """
        end = self._position + length
        if end > len(self._bytes):
            raise PackageFormatError(f"payload of {len(self._bytes)} bytes ends inside a stream that ends at {end}")
        taken = self._bytes[self._position : end]
        self._position = end
        return taken

    def take_bits(self, count: int) -> NDArray[np.uint8]:
        """Return `count` bits as zeros and ones, shape (count,); the first is the highest of its byte."""
        return np.unpackbits(self.take((count + 7) // 8), count=count)

    def finish(self) -> None:
        """Refuse bytes that no stream took."""
        if self._position != len(self._bytes):
            raise PackageFormatError(f"payload of {len(self._bytes)} bytes; its streams end at {self._position}")
