"""Plans for a wished number of parameters.

Every maker searches the same small space: widths in steps of one head group, depths, and how wide the feed-forward
network is. Of the plans that hit the wish, the one nearest to the shape's usual proportions is taken.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Final

from model.errors import ConfigError
from model.plans.shapes import WIDTHS, Size, plan_of, shape_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.config import ModelConfig
    from model.plans.shapes import Shape

_MAX_LAYERS: Final = 96
_TOLERANCE: Final = 0.005  # of the wish; nearer is no better, so that the proportions decide
_FFN_STRETCH: Final = 1.6  # how far the feed-forward multiplier may be from its usual value
_ASPECT_STRETCH: Final = 2.5  # the same for width over depth


def make_plan(
    shape: str,
    parameters: int,
    *,
    vocab_size: int = 32_000,
    max_context: int = 2048,
    num_layers: int | None = None,
    model_dim: int | None = None,
) -> ModelConfig:
    """The plan of a shape that stores about as many weights as wished: within 1 %, unless depth and width bind it.

    Args:
        shape: One of `SHAPES`.
        parameters: Wished number of stored weights, the (tied) embedding included.
        vocab_size: Rows of the embedding.
        max_context: Longest sequence.
        num_layers: Depth; chosen where None.
        model_dim: Width; chosen where None.

    Raises:
        ConfigError: The shape is unknown, or no plan comes within 5 % of the wish.
    """
    best: tuple[float, ModelConfig] | None = None
    usual = shape_named(shape)
    sizes = _sizes(usual, num_layers=num_layers, model_dim=model_dim)
    for size in sorted(sizes, key=lambda size: _aspect_oddness(usual, size)):
        if best is not None and best[0] <= _aspect_oddness(usual, size):
            break  # all that follow are odder
        plan = _fitted(shape, size, parameters, vocab_size=vocab_size, max_context=max_context)
        if plan is not None and (best is None or plan[0] < best[0]):
            best = plan
    if best is None or abs(best[1].parameter_count - parameters) > parameters / 20:
        nearest = "" if best is None else f" (the nearest has {best[1].parameter_count:,})"
        raise ConfigError(
            f"no {shape} plan has about {parameters:,} parameters with a vocabulary of {vocab_size:,}{nearest}; "
            "change the number, the vocabulary, or the layers and width if you set them"
        )
    return best[1]


def _sizes(usual: Shape, *, num_layers: int | None, model_dim: int | None) -> Iterator[Size]:
    """Widths and depths to try, with proportions that a model of this shape may have unless the caller binds them."""
    for width in WIDTHS if model_dim is None else (model_dim,):
        for depth in range(1, _MAX_LAYERS + 1) if num_layers is None else (num_layers,):
            is_bound = num_layers is not None or model_dim is not None
            size = Size(num_layers=depth, model_dim=width, ffn_multiplier=usual.ffn_multiplier)
            if is_bound or _aspect_oddness(usual, size) <= math.log(_ASPECT_STRETCH):
                yield size


def _aspect_oddness(usual: Shape, size: Size) -> float:
    return abs(math.log(size.model_dim / size.num_layers / usual.aspect))


def _fitted(
    shape: str, size: Size, parameters: int, *, vocab_size: int, max_context: int
) -> tuple[float, ModelConfig] | None:
    """The plan of that depth and width whose feed-forward width brings it nearest to the wish, and how odd it is."""
    usual = shape_named(shape)
    if vocab_size * size.model_dim > parameters:
        return None

    def plan(hundredths: int) -> ModelConfig:
        stretched = size.with_ffn_multiplier(hundredths / 100)
        return plan_of(shape, stretched, vocab_size=vocab_size, max_context=max_context)

    low, high = round(100 * usual.ffn_multiplier / _FFN_STRETCH), round(100 * usual.ffn_multiplier * _FFN_STRETCH)
    for end, is_beyond in ((low, operator.gt), (high, operator.lt)):
        if is_beyond((count := plan(end).parameter_count), parameters):
            return 100 + abs(count / parameters - 1), plan(end)
    while low < high:  # the first multiplier that is not below the wish
        middle = (low + high) // 2
        low, high = (middle + 1, high) if plan(middle).parameter_count < parameters else (low, middle)
    candidates = [(abs(plan(n).parameter_count / parameters - 1), n) for n in (low - 1, low)]
    error, nearest = min(candidates)
    if error > _TOLERANCE:
        return 100 + error, plan(nearest)
    return _aspect_oddness(usual, size) + abs(math.log(nearest / 100 / usual.ffn_multiplier)), plan(nearest)
