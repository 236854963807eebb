"""What an attack on membership reads: the losses of one group of examples, on the release and on its base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


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
        """What each loss fell by from the base, times the root of its tokens: a mean over few moves far by chance.

        Raises:
            AuditError: As `raw` says, or tokens are missing.
        """
        raw = self.raw(who)
        tokens = np.ones(raw.size) if self.tokens is None else np.asarray(self.tokens, dtype=np.float64)
        if tokens.shape != raw.shape or not (tokens >= 1).all():
            raise AuditError(
                f"{who} losses need the number of their tokens, at least 1, for each of {raw.size} examples"
            )
        return np.sqrt(tokens) * (raw + np.asarray(self.base, dtype=np.float64))
