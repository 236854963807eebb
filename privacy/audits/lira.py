"""LiRA, online: how likely is an example's loss among models that saw it, against models that did not?

Source: Carlini, Chien, Nasr, Song, Terzis, Tramèr, "Membership Inference Attacks From First Principles", IEEE S&P 2022,
algorithm 1, with one variance for all examples, which they advise for few shadow models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import AuditError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def lira_scores(
    losses: NDArray[np.float64], shadow_losses: NDArray[np.float64], shadow_saw: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Log of the likelihood ratio that each example was in, shape (examples,); the higher, the more likely.

    Args:
        losses: On the model under attack, shape (examples,).
        shadow_losses: On each shadow model, shape (shadows, examples).
        shadow_saw: Which examples each shadow model was trained on, the same shape.

    Raises:
        AuditError: Shapes differ, or an example was in all shadow models, or in none.
    """
    if shadow_losses.shape != shadow_saw.shape or shadow_losses.shape[1:] != losses.shape:
        raise AuditError(f"shadow losses {shadow_losses.shape} do not go with {losses.shape} examples")
    seen = shadow_saw.sum(axis=0)
    if (seen == 0).any() or (seen == len(shadow_saw)).any():
        raise AuditError("each example must be in some shadow models and not in others: train more of them")
    inside = _mean_where(shadow_losses, shadow_saw)
    outside = _mean_where(shadow_losses, ~shadow_saw)
    rest = np.where(shadow_saw, shadow_losses - inside, shadow_losses - outside)
    variance = max(float((rest**2).mean()), 1e-12)
    return np.asarray(((losses - outside) ** 2 - (losses - inside) ** 2) / (2 * variance), dtype=np.float64)


def _mean_where(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray((values * mask).sum(axis=0) / mask.sum(axis=0), dtype=np.float64)
