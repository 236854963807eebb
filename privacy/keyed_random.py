"""Noise that can be made again from a secret key, for mechanisms that must go on where they stopped."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray  # noqa: TC002 - beside numpy

from privacy.randomness import BitSource

KEY_BYTES = 32


class KeyedRandom(BitSource):
    """ChaCha20's key stream (RFC 8439): unpredictable without the key, the same with it. One `stream` a purpose."""

    def __init__(self, key: bytes, *, stream: int) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes, not {len(key)}")
        nonce = bytes(8) + stream.to_bytes(8, "little")  # the first half counts the blocks
        self._cipher = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of the stream; shape (count,)."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)
