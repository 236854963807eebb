"""Reconstruction: can the words of a device's text be read out of its update?

The gradient of a low-rank factor A whose layer reads the embeddings is a sum of outer products with the embeddings of
the very words that were trained on, so its rows lie in their span; where there are fewer words than rows, each
vocabulary entry can be tested for lying in it. Source: Petrov, Dimitrov, Baader, Müller, Vechev, "DAGER: Exact Gradient
Inversion for Large Language Models", NeurIPS 2024, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from privacy.audits.finding import CERTAINTY, CONFIDENCE, Finding, Verdict, clopper_pearson, one_sided
from privacy.errors import AuditError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_RANK_TOLERANCE: Final = 1e-3
# The control must give away at least this share of the words, or the attack is not one.
_CAUGHT_ABOVE: Final = 0.5
_FAILED_ABOVE: Final = 0.1


@dataclass(frozen=True)
class Attempt:
    """One attack on one update: so many of the `words` that it was made from were among as many best guesses."""

    words: int
    found: int


def distances_from_span(update_rows: NDArray[np.floating], inputs: NDArray[np.floating]) -> NDArray[np.float64]:
    """How far each input lies from the span of an update's rows, over its length; shape (inputs,), 0 within, 1 across.

    Args:
        update_rows: Updates of all factors A that read the same inputs, shape (rows, model dim).
        inputs: What each vocabulary entry becomes before these layers, shape (vocabulary, model dim).

    Raises:
        AuditError: The update is zero or not finite: there is nothing to attack.
    """
    rows = np.asarray(update_rows, dtype=np.float64)
    if not np.isfinite(rows).all() or not rows.any():
        raise AuditError("the update is zero or not finite: nothing can be read out of it")
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    basis = basis[sizes > _RANK_TOLERANCE * sizes[0]]
    values = np.asarray(inputs, dtype=np.float64)
    lengths = np.linalg.norm(values, axis=1)
    inside = np.linalg.norm(values @ basis.T, axis=1) / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(np.sqrt(np.clip(1 - inside**2, 0.0, 1.0)), dtype=np.float64)


def attempt(update_rows: NDArray[np.floating], inputs: NDArray[np.floating], words: Sequence[int]) -> Attempt:
    """Guess as many vocabulary entries as there were words, those nearest to the span, and count the right ones."""
    true = np.unique(np.asarray(words))
    nearest = np.argsort(distances_from_span(update_rows, inputs), kind="stable")[: true.size]
    return Attempt(words=true.size, found=int(np.isin(nearest, true).sum()))


def reconstruction_finding(
    attempts: Sequence[Attempt], control: Sequence[Attempt], summed: Sequence[Attempt], *, vocabulary: int
) -> Finding:
    """What one device's update gives away, beside the same update without noise, and the sum over a cohort.

    Args:
        attempts: On updates as devices send them.
        control: On the same updates without noise and clipping.
        summed: On the sum over a cohort of those without noise, which is what secure aggregation would show.
        vocabulary: How many entries could be guessed.
    """
    words, found = sum(a.words for a in attempts), sum(a.found for a in attempts)
    control_rate = _rate(control)
    caught = one_sided(sum(a.found for a in control), sum(a.words for a in control))[0] > _CAUGHT_ABOVE
    rate = found / words
    chance = sum(a.words for a in attempts) / len(attempts) / vocabulary
    told = f"{rate:.1%} of the words were read out of one device's update ({control_rate:.1%} without noise)"
    if one_sided(found, words, confidence=CERTAINTY)[0] > max(_FAILED_ABOVE, chance):
        verdict, reason = Verdict.FAIL, told
    elif not caught:
        verdict, reason = Verdict.INCONCLUSIVE, f"{told}: the attack does not work here even then"
    elif one_sided(found, words)[1] >= _FAILED_ABOVE:
        verdict, reason = Verdict.INCONCLUSIVE, f"{told}; too few words to say that it is below {_FAILED_ABOVE:.0%}"
    else:
        verdict, reason = Verdict.PASS, told
    return Finding(
        part="reconstruction",
        question="Can the words of a text be read out of one device's update?",
        verdict=verdict,
        reason=reason,
        measured=rate,
        unit="share of the words found",
        interval=clopper_pearson(found, words, confidence=CONFIDENCE),
        claimed=_FAILED_ABOVE,
        sample_size=len(attempts),
        sample=f"{len(attempts)} devices with one short text each, {words} words in all, of {vocabulary} possible ones",
        control=f"the same without noise and clipping: {control_rate:.1%} found",
        is_control_caught=caught,
        power=f"a share above {one_sided(math.ceil(_FAILED_ABOVE * words), words)[1]:.0%} would be seen",
        reading="the attacker is the server: it sees each update and has the base; a guess finds next to nothing",
        facts={"chance": chance, "control": control_rate, "summed_without_noise": _rate(summed)},
    )


def _rate(attempts: Sequence[Attempt]) -> float:
    words = sum(a.words for a in attempts)
    return sum(a.found for a in attempts) / words if words else 0.0
