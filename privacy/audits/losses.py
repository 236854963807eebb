"""What an attack on membership reads: the losses of one group of examples, on the release and on its base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from privacy.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Nats a token. What the base knows by heart already says nothing about membership.
_LEAST_BASE_LOSS: Final = 0.1


@dataclass(frozen=True)
class Losses:
    """Mean losses of examples, nats a token, all in the same order.

    Attributes:
        release: On the released model, shape (examples,).
        base: On the model that it was trained from.
        tokens: Over how many tokens each loss is a mean; None: over equally many.
    """

    release: Sequence[float]
    base: Sequence[float]
    tokens: Sequence[int] | None = None

    def raw(self, who: str) -> Floats:
        """The release alone as a score: the lower a loss, the higher it is.

        Raises:
            AuditError: Lengths differ, a number is no number, or there is no example; the message says whose, `who`.
        """
        values, base = np.asarray(self.release, dtype=np.float64), np.asarray(self.base, dtype=np.float64)
        if values.ndim != 1 or values.shape != base.shape or values.size == 0:
            raise AuditError(f"{who} losses need one value an example on both models: {values.shape} and {base.shape}")
        if not (np.isfinite(values).all() and np.isfinite(base).all()):
            raise AuditError(f"{who} losses contain values that are not finite; the model may have diverged")
        return -values

    def calibrated(self, who: str) -> Floats:
        """What share of its loss on the base each example lost, times the root of its tokens.

        By chance a mean over few tokens moves far, and what the base finds hard has far to fall: neither shall stand
        above the members.

        Raises:
            AuditError: As `raw` says, or tokens are missing.
        """
        raw = self.raw(who)
        tokens = np.ones(raw.size) if self.tokens is None else np.asarray(self.tokens, dtype=np.float64)
        if tokens.shape != raw.shape or not (tokens >= 1).all():
            raise AuditError(
                f"{who} losses need the number of their tokens, at least 1, for each of {raw.size} examples"
            )
        base = np.asarray(self.base, dtype=np.float64)
        return np.sqrt(tokens) * (raw + base) / np.maximum(base, _LEAST_BASE_LOSS)
