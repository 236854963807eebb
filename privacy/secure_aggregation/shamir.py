"""Shamir's secret sharing: `threshold` of the shares restore a secret of 32 bytes, fewer say nothing about it.

Source: Shamir, "How to Share a Secret", CACM 1979; over the integers modulo the Mersenne prime 2^521 - 1. The secret
lives for one round, on the device that made it; timing is not hidden.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PRIME: Final = 2**521 - 1
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 66


def split(secret: bytes, holders: Sequence[int], *, threshold: int) -> dict[int, bytes]:
    """One share of 66 bytes for each holder (a positive number, each once).

    Raises:
        ValueError: The secret is not 32 bytes, holders repeat or are not positive, or fewer than `threshold`.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(holders):
        raise ValueError(f"{threshold} of {len(holders)} shares cannot be made of {len(secret)} bytes")
    if len(set(holders)) != len(holders) or any(not 0 < holder < PRIME for holder in holders):
        raise ValueError("share holders are different positive numbers")
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {holder: _value_at(polynomial, holder).to_bytes(SHARE_BYTES, "big") for holder in holders}


def restore(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret, from exactly as many shares as its threshold; None: they do not belong together."""
    total = 0
    for holder, share in shares.items():
        value = int.from_bytes(share, "big")
        if len(share) != SHARE_BYTES or value >= PRIME:
            return None
        total += value * _weight(holder, shares)
    total %= PRIME
    return total.to_bytes(SECRET_BYTES, "big") if total < 1 << (8 * SECRET_BYTES) else None


def _value_at(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def _weight(holder: int, holders: Mapping[int, bytes]) -> int:
    """Lagrange's weight of one share for the value at zero."""
    above = below = 1
    for other in holders:
        if other != holder:
            above = above * other % PRIME
            below = below * (other - holder) % PRIME
    return above * pow(below, -1, PRIME) % PRIME
