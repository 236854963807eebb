"""Masks: streams of uniform numbers modulo 2^32 from keys that only those who should remove them can make.

X25519 (RFC 7748) agrees on a secret, HKDF-SHA256 (RFC 5869) makes a key of it for one purpose, ChaCha20 (RFC 8439) the
stream. None of it is our own: `cryptography` does the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEY_BYTES: Final = 32
_NONCE: Final = bytes(16)  # every key is used for one stream only
_BLOCK: Final = 1 << 16


def agreed_key(own: X25519PrivateKey, other: bytes, *, purpose: bytes) -> bytes:
    """32 bytes that both sides of a pair can make, for one purpose.

    Raises:
        ValueError: `other` is no public key of 32 bytes, or one that makes every secret the same.
    """
    return derived(own.exchange(X25519PublicKey.from_public_bytes(other)), purpose=purpose)


def is_usable_key(key: bytes) -> bool:
    """Whether a public key is one that secrets can be agreed on with."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        return False
    return True


def derived(secret: bytes, *, purpose: bytes) -> bytes:
    """A key of 32 bytes for one purpose."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"lamella secure sum 2 " + purpose).derive(secret)


def add_mask(vector: NDArray[np.uint32], key: bytes, *, sign: int) -> None:
    """Add the stream of `key` to `vector` in place, or take it away (`sign` -1), modulo 2^32."""
    stream = Cipher(algorithms.ChaCha20(key, _NONCE), mode=None).encryptor()
    zeros = memoryview(bytes(4 * _BLOCK))
    for start in range(0, vector.size, _BLOCK):
        part = vector[start : start + _BLOCK]
        mask = np.frombuffer(stream.update(zeros[: 4 * part.size]), dtype="<u4")
        if sign > 0:
            part += mask
        else:
            part -= mask
