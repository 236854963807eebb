"""Exposure: does the model prefer a secret that it was trained on to others that could have stood in its place?

Source: Carlini, Liu, Erlingsson, Kos, Song, "The Secret Sharer", USENIX Security 2019, definition 4: log2 of the number
of candidates, less log2 of the secret's rank among them by loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import stats

from privacy.audits.finding import CERTAINTY, CONFIDENCE, Finding, Interval, Verdict
from privacy.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_RESAMPLES: Final = 2000


def ranks_of(losses: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank of each secret, 1 the best, shape (secrets,), from losses (secrets, candidates), the secret's own first.

    A candidate with the same loss counts as better, so that a model that cannot tell gives nothing away.

    Raises:
        AuditError: There is no candidate beside the secret, or a loss is not finite.
    """
    if losses.ndim != 2 or losses.shape[1] < 2 or not np.isfinite(losses).all():  # noqa: PLR2004 - a table
        raise AuditError(f"exposure needs finite losses (secrets, candidates), not shape {losses.shape}")
    return np.asarray(1 + (losses[:, 1:] <= losses[:, :1]).sum(axis=1), dtype=np.int64)


def exposure_finding(losses: NDArray[np.float64], control: NDArray[np.float64], *, repeats: int) -> Finding:
    """What the release remembers of secrets that were put into the training text, beside a run without noise.

    Args:
        losses: Of the run, shape (secrets, candidates), the secret's own first.
        control: Of the same run without noise and clipping, the same shape.
        repeats: How often each secret stood in its device's text.
    """
    ranks, of_control = ranks_of(losses), ranks_of(control)
    candidates = losses.shape[1]
    exposures, control_exposures = _exposures(ranks, candidates), _exposures(of_control, candidates)
    p_value, control_p = _chance(ranks, candidates), _chance(of_control, candidates)
    caught = control_p < 1 - CERTAINTY
    mean = float(exposures.mean())
    verdict, reason = _judge(p_value, first=int((ranks == 1).sum()), secrets=ranks.size, is_control_caught=caught)
    return Finding(
        part="exposure",
        question="Does the release remember a secret that stood in the training text?",
        verdict=verdict,
        reason=f"mean exposure {mean:.2f} of {math.log2(candidates):.1f} bits; {reason}",
        measured=mean,
        unit="bits of exposure",
        interval=_interval(exposures),
        sample_size=ranks.size,
        sample=f"{ranks.size} secrets, {repeats} times each, against {candidates - 1} others in their place",
        control=f"the same without noise and clipping: {float(control_exposures.mean()):.2f} bits",
        is_control_caught=caught,
        power=f"{ranks.size} secrets are noticed when their mean exposure is {_least_seen(ranks.size):.1f} bits",
        reading=f"guessing gives {1 / math.log(2):.2f} bits on average; {math.log2(candidates):.1f} is a secret learnt",
        facts={"p_value": p_value, "control_p_value": control_p, "control": float(control_exposures.mean())},
    )


def _judge(p_value: float, *, first: int, secrets: int, is_control_caught: bool) -> tuple[Verdict, str]:
    if p_value < 1 - CERTAINTY:
        return Verdict.FAIL, f"{first} of {secrets} secrets are the likeliest of all; by chance p = {p_value:.1e}"
    if not is_control_caught:
        return Verdict.INCONCLUSIVE, "so short a run remembers no secret even without noise"
    if p_value < 1 - CONFIDENCE:
        return Verdict.INCONCLUSIVE, f"by chance p = {p_value:.3f}: neither clear nor nothing"
    return Verdict.PASS, f"no more than by chance (p = {p_value:.2f})"


def _exposures(ranks: NDArray[np.int64], candidates: int) -> NDArray[np.float64]:
    return np.asarray(math.log2(candidates) - np.log2(ranks), dtype=np.float64)


def _chance(ranks: NDArray[np.int64], candidates: int) -> float:
    """Probability of so small ranks if each were uniform (Fisher's combination of their p-values)."""
    return float(stats.chi2.sf(-2 * np.log(ranks / candidates).sum(), 2 * ranks.size))


def _least_seen(secrets: int) -> float:
    """The mean exposure, in bits, at which chance is ruled out."""
    return float(stats.chi2.isf(1 - CERTAINTY, 2 * secrets)) / (2 * secrets) / math.log(2)


def _interval(values: NDArray[np.float64]) -> Interval:
    """Percentile bootstrap of the mean."""
    if values.size == 1:
        return (0.0, math.inf)
    random = np.random.default_rng(0)
    means = values[random.integers(values.size, size=(_RESAMPLES, values.size))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return (float(low), float(high))


def spread_over(secrets: Sequence[str], devices: int) -> tuple[tuple[str, ...], ...]:
    """Secrets for each of so many devices, in turn."""
    return tuple(tuple(secrets[device::devices]) for device in range(devices))
