"""Shamir's secret sharing: `threshold` of the shares restore a secret of 16 bytes, fewer say nothing about it.

The arithmetic is PyCryptodome's, in GF(2^128). Source: Shamir, "How to Share a Secret", CACM 1979.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from Crypto.Protocol.SecretSharing import Shamir

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECRET_BYTES: Final = 16
SHARE_BYTES: Final = 16


def split(secret: bytes, holders: Sequence[int], *, threshold: int) -> dict[int, bytes]:
    """One share of 16 bytes for each holder; a share's place in the polynomial is its holder's among all, in order.

    Raises:
        ValueError: The secret is not 16 bytes, holders repeat, or there are fewer than `threshold`.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(holders):
        raise ValueError(f"{threshold} of {len(holders)} shares cannot be made of {len(secret)} bytes")
    if len(set(holders)) != len(holders):
        raise ValueError("each share has a holder of its own")
    made = Shamir.split(threshold, len(holders), secret, ssss=False)
    return {holder: bytes(share) for holder, (_, share) in zip(sorted(holders), made, strict=True)}


def restore(shares: Mapping[int, bytes], holders: Sequence[int]) -> bytes:
    """The secret that was split among `holders`, from exactly `threshold` true shares by holder.

    From others it is some other 16 bytes: whoever calls this can tell which secret is the right one.
    """
    place = {holder: number for number, holder in enumerate(sorted(holders), start=1)}
    return bytes(Shamir.combine([(place[holder], share) for holder, share in shares.items()], ssss=False))
