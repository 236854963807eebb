"""The same guarantee by other accountants, to hold the reported one against: Rényi DP and privacy random variables.

The reported figure is PLD's (`accountant`). Rényi DP bounds it from above, by a proof that shares nothing with it. The
PRV accountant is another program for the same numerical idea, and may differ by its stated error only.

Sources: Mironov, "Rényi Differential Privacy" (2017); Mironov, Talwar and Zhang, "Rényi Differential Privacy of the
Sampled Gaussian Mechanism" (2019); Gopi, Lee and Wutschitz, "Numerical Composition of Differential Privacy" (2021).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import dp_accounting
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import PRVAccountant

from privacy.accountant import epsilon_of_steps

PRV_ERROR = 0.01
_PRV_DELTA_ERROR_SHARE = 1e-4
# Beyond, the grid of the PRV accountant has more points than a laptop holds.
_LARGEST_PRV_EPSILON = 50.0


@dataclass(frozen=True, kw_only=True)
class Opinions:
    """ε of equal noisy steps, by three accountants; `prv` is None where its grid would not fit into memory."""

    pld: float
    rdp: float
    prv: float | None

    @property
    def agree(self) -> bool:
        """Whether they bracket each other: PLD at most RDP, and PRV within its stated error of PLD."""
        if math.isinf(self.pld):
            return math.isinf(self.rdp)
        is_near = self.prv is None or abs(self.prv - self.pld) <= 2 * PRV_ERROR
        return self.pld <= self.rdp * (1 + 1e-6) + 1e-3 and is_near


def opinions_of(*, noise_multiplier: float, sampling_probability: float, steps: int, target_delta: float) -> Opinions:
    """ε of `steps` Poisson-sampled Gaussian steps at `target_delta`, one example added or removed.

    Raises:
        ValueError: a probability is out of range, or there are no steps.
    """
    if not 0 < sampling_probability <= 1 or not 0 < target_delta < 1 or noise_multiplier < 0 or steps < 1:
        raise ValueError(
            "sampling probability lies in (0, 1], delta in (0, 1), noise is not negative and there is a step: "
            f"{sampling_probability}, {target_delta}, {noise_multiplier}, {steps}"
        )
    pld = epsilon_of_steps(
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        steps=steps,
        target_delta=target_delta,
    )
    if math.isinf(pld):
        return Opinions(pld=math.inf, rdp=math.inf, prv=None)
    return Opinions(
        pld=pld,
        rdp=_rdp(noise_multiplier, sampling_probability, steps, target_delta),
        prv=_prv(noise_multiplier, sampling_probability, steps, target_delta) if pld < _LARGEST_PRV_EPSILON else None,
    )


def _rdp(noise_multiplier: float, sampling_probability: float, steps: int, target_delta: float) -> float:
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = dp_accounting.PoissonSampledDpEvent(sampling_probability, dp_accounting.GaussianDpEvent(noise_multiplier))
    accountant.compose(step, steps)
    return float(accountant.get_epsilon(target_delta))


def _prv(noise_multiplier: float, sampling_probability: float, steps: int, target_delta: float) -> float | None:
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sampling_probability, steps)]
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
