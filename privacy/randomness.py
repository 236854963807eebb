"""Random numbers for sampling and noise: the operating system's in earnest, seeded ones for tests.

torch's CPU generator expands a 32-bit seed, whatever it is given, so that an attacker can try them all and subtract
the noise. Noise that protects people therefore comes from the kernel's cryptographic generator.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TWO_TO_MINUS_64 = 2.0**-64
_CHUNK = 1 << 20
_KEY_BYTES = 32
# A key is used once, so that it needs no nonce of its own.
_NONCE = bytes(16)


class RandomSource(Protocol):
    """Where random numbers come from."""

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """`count` independent numbers in [0, 1), multiples of 2**-53; shape (count,)."""

    def normals(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal numbers; shape (count,)."""


class BitSource:
    """Numbers from random bits; normals in double precision (Box, Muller 1958)."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` words of 64 independent bits each; shape (count,)."""
        raise NotImplementedError

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """`count` independent numbers in [0, 1); shape (count,)."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normals(self, count: int) -> NDArray[np.float64]:
        """`count` independent standard normal numbers; shape (count,).

        The radius uses 64 bits, so the tail reaches 9.4 standard deviations; what lies beyond has probability 1e-20.
        """
        out = np.empty(count + count % 2)
        for start in range(0, out.size, _CHUNK):  # chunks bound the memory that the intermediate arrays take
            part = out[start : start + _CHUNK]
            half = part.size // 2
            words = self.words(part.size).astype(np.float64)
            radius = np.sqrt(-2.0 * np.log((words[:half] + 0.5) * _TWO_TO_MINUS_64))
            angle = words[half:] * (2.0 * np.pi * _TWO_TO_MINUS_64)
            np.multiply(radius, np.cos(angle), out=part[:half])
            np.multiply(radius, np.sin(angle), out=part[half:])
        return out[:count]


class SystemRandom(BitSource):
    """The kernel's cryptographic generator: each call draws a key of 256 bits from it, expanded by ChaCha20 (RFC 8439).

    The kernel expands its own keys the same way; doing it here takes a tenth of the time, and the key is gone at once.
    """

    def words(self, count: int) -> NDArray[np.uint64]:
        """`count` words of 64 independent bits each; shape (count,)."""
        stream = Cipher(algorithms.ChaCha20(os.urandom(_KEY_BYTES), _NONCE), mode=None).encryptor()
        return np.frombuffer(stream.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)


class SeededRandom:
    """Repeatable numbers for tests: whoever knows the seed can subtract the noise."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """`count` repeatable numbers in [0, 1); shape (count,)."""
        return self._generator.random(count)

    def normals(self, count: int) -> NDArray[np.float64]:
        """`count` repeatable standard normal numbers; shape (count,)."""
        return self._generator.standard_normal(count)
