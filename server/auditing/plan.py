"""What an audit does, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# In the order of running: cheap ones first. A part may bring several findings.
PARTS: Final = ("user", "example", "reconstruction", "membership", "exposure")


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """Sizes of the samples; more cost time and make intervals narrower.

    Attributes:
        members: Most examples that were trained on, and as many others, for the membership attack.
        canaries: Directions in the mechanism, each in or out by a fair coin.
        attempts: Devices whose update the reconstruction attack tries to read.
        secrets: Strings that are put into the training text.
        repeats: How often each of them stands there.
        candidates: Strings that each secret is compared with, itself among them.
        shadows: Runs on random halves of the text, for likelihood ratios; each takes as long as the run's training.
        seed: Of coins, texts and secrets; never of noise.
    """

    members: int = 1000
    canaries: int = 1000
    attempts: int = 12
    secrets: int = 8
    repeats: int = 4
    candidates: int = 128
    shadows: int = 0
    seed: int = 0
