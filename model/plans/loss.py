"""A guess at how well a plan would learn: a proxy to rank plans by, not a forecast.

It knows two things that are published: how loss falls with weights and training tokens, and that a model may be too
deep or too flat for its width. It knows nothing of how weights are spread over the layers, of shared keys and values
(other than that they store fewer weights), of data or of optimisers: plans within a percent or so are equally good for
all it can tell, and only training decides between them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from model.plans.arithmetic import PlanCost

OPENELM_TOKENS: Final = 1.5e12

# loss = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv:2203.15556), with the constants that Besiroglu et al.
# 2024 (arXiv:2404.10102) obtained from the same runs; the published ones were rounded and fit them badly.
_IRREDUCIBLE: Final = 1.8172
_A, _ALPHA = 482.01, 0.3478
_B, _BETA = 2085.43, 0.3658

# The best depth for a width: ln(width) = 5.039 + 0.0555 * depth (Levine et al. 2020, arXiv:2006.12467, their fit).
_DEPTH_OFFSET, _DEPTH_SLOPE = 5.039, 0.0555
# So that 6 layers of width 4288 are 3 % worse than 48 of width 1600 (Kaplan et al. 2020, arXiv:2001.08361).
_SHAPE_PENALTY: Final = 0.0057


def loss_proxy(cost: PlanCost, *, training_tokens: float = OPENELM_TOKENS) -> float:
    """Guessed loss in nats a token after training on `training_tokens`; lower is better.

    N is the number of stored weights outside the embedding (Kaplan et al. 2020 found the loss to follow these); depth
    is the number of layers that run, repeated ones included.
    """
    weights = cost.non_embedding_parameters
    power_law = _IRREDUCIBLE + _A / math.pow(weights, _ALPHA) + _B / math.pow(training_tokens, _BETA)
    return power_law * (1 + _SHAPE_PENALTY * math.log(len(cost.layers) / best_depth(cost.model_dim)) ** 2)


def best_depth(model_dim: int) -> float:
    """Number of layers at which a model of that width is neither too flat nor too deep; at least one."""
    return max(1.0, (math.log(model_dim) - _DEPTH_OFFSET) / _DEPTH_SLOPE)
