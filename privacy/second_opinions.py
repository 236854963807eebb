"""The same guarantee by other accountants, to hold the reported one against: Rényi DP and privacy random variables.

The reported figure is PLD's (`accountant`). Rényi DP bounds it from above, by a proof that shares nothing with it. The
PRV accountant is another program for the same numerical idea, and may differ by its stated error only.

Sources: Mironov, "Rényi Differential Privacy" (2017); Mironov, Talwar and Zhang, "Rényi Differential Privacy of the
Sampled Gaussian Mechanism" (2019); Gopi, Lee and Wutschitz, "Numerical Composition of Differential Privacy" (2021).
"""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import dp_accounting
from dp_accounting.rdp import RdpAccountant

from privacy.accountant import epsilon_of_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from privacy.accountant import Group

PRV_ERROR = 0.01
_PRV_DELTA_ERROR_SHARE = 1e-4
# Beyond, the grid of the PRV accountant has more points than a laptop holds.
_LARGEST_PRV_EPSILON = 50.0


@dataclass(frozen=True, kw_only=True)
class Opinions:
    """ε of the same noisy steps, by three accountants.

    `prv` is None where its grid would not fit into memory, its integrals do not converge, or Opacus is not installed.
    """

    pld: float
    rdp: float
    prv: float | None

    @property
    def agree(self) -> bool:
        """Whether those that could tell bracket each other: PLD at most RDP, PRV within its stated error of PLD."""
        if math.isinf(self.pld):
            return math.isinf(self.rdp)
        is_near = self.prv is None or abs(self.prv - self.pld) <= 2 * PRV_ERROR
        return self.pld <= self.rdp * (1 + 1e-6) + 1e-3 and is_near


def opinions_of(*, noise_multiplier: float, sampling_probability: float, steps: int, target_delta: float) -> Opinions:
    """ε of `steps` Poisson-sampled Gaussian steps at `target_delta`, one example added or removed.

    Raises:
        ValueError: a probability is out of range, or there are no steps.
    """
    return opinions_on([(sampling_probability, noise_multiplier, steps)], target_delta=target_delta)


def opinions_on(groups: Sequence[Group], *, target_delta: float) -> Opinions:
    """ε of (sampling probability, noise multiplier, steps) composed, one example (or user) added or removed.

    Raises:
        ValueError: a probability is out of range, or there are no steps.
    """
    for sampling_probability, noise_multiplier, steps in groups:
        if not 0 < sampling_probability <= 1 or not 0 < target_delta < 1 or noise_multiplier < 0 or steps < 1:
            raise ValueError(
                "sampling probability lies in (0, 1], delta in (0, 1), noise is not negative and there is a step: "
                f"{sampling_probability}, {target_delta}, {noise_multiplier}, {steps}"
            )
    return _opinions(tuple(sorted(groups)), target_delta)


@lru_cache(maxsize=256)
def _opinions(groups: tuple[Group, ...], target_delta: float) -> Opinions:
    pld = epsilon_of_groups(groups, target_delta=target_delta)
    if math.isinf(pld):
        return Opinions(pld=math.inf, rdp=math.inf, prv=None)
    prv = _prv(groups, target_delta) if pld < _LARGEST_PRV_EPSILON else None
    return Opinions(pld=pld, rdp=_rdp(groups, target_delta), prv=prv)


def _rdp(groups: Sequence[Group], target_delta: float) -> float:
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    with _quietly():
        for probability, noise, steps in groups:
            step = dp_accounting.PoissonSampledDpEvent(probability, dp_accounting.GaussianDpEvent(noise))
            accountant.compose(step, steps)
    return float(accountant.get_epsilon(target_delta))


@contextmanager
def _quietly() -> Iterator[None]:
    """Orders that do not converge are left out, which is sound and needs no line for each in anybody's log."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _prv(groups: Sequence[Group], target_delta: float) -> float | None:
    try:
        from opacus.accountants import PRVAccountant  # noqa: PLC0415 - with torch: who recomputes need not have it
    except ImportError:
        return None
    accountant = PRVAccountant()
    accountant.history = [(noise, probability, steps) for probability, noise, steps in groups]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its numerics, which its stated error covers
            return float(
                accountant.get_epsilon(
                    target_delta, eps_error=PRV_ERROR, delta_error=target_delta * _PRV_DELTA_ERROR_SHARE
                )
            )
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        # Where its integrals do not converge it says so in one of these ways.
        return None
