"""Kinds of plans: how heads and feed-forward widths are spread over the layers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from model.config import ModelConfig
from model.errors import ConfigError
from model.plans.openelm import GROUP, NORM_EPS, nearest_multiple, openelm_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Query heads, kv heads and feed-forward widths, one entry a layer.
Layers = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

PYRAMID_LAST: Final = 0.25  # the last layer has a quarter of the first one's heads and width
# Multiples of `Size.unit`, so that all heads together can be as wide as the model.
WIDTHS: Final = (*range(128, 512, 128), *range(512, 2560, 256), *range(2560, 8193, 512))
_HEAD_DIMS: Final = ((2560, 128), (512, 64), (0, 32))  # from which width on heads have how many elements


@dataclass(frozen=True, kw_only=True)
class Size:
    """What tells apart two plans of one shape.

    Attributes:
        num_layers: Depth.
        model_dim: Width of the residual stream.
        ffn_multiplier: Width of the widest feed-forward network over `model_dim`.
    """

    num_layers: int
    model_dim: int
    ffn_multiplier: float

    @property
    def head_dim(self) -> int:
        """Width of a head: 128 for wide models, 64 below 2560 (both as in OpenELM), 32 for tiny ones."""
        return next(head_dim for width, head_dim in _HEAD_DIMS if self.model_dim >= width)

    @property
    def unit(self) -> int:
        """Width of the query heads that share one kv head."""
        return self.head_dim * GROUP

    def with_ffn_multiplier(self, ffn_multiplier: float) -> Size:
        """The same depth and width with another feed-forward multiplier."""
        return dataclasses.replace(self, ffn_multiplier=ffn_multiplier)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A kind of plan.

    Attributes:
        layers: The layers of a plan from its size.
        ffn_multiplier: Usual width of the widest feed-forward network over the model's width.
        aspect: Usual width of the model over the number of layers.
        qk_norm: Whether queries and keys are normalised.
        norm_eps: Added to the mean square in RMSNorm.
    """

    layers: Callable[[Size], Layers]
    ffn_multiplier: float
    aspect: float
    qk_norm: bool
    norm_eps: float


def uniform_layers(size: Size) -> Layers:
    """Every layer the same, its query heads together as wide as the model (Llama, SmolLM2)."""
    heads = nearest_multiple(size.model_dim, size.unit) // size.head_dim
    ffn_dim = nearest_multiple(size.model_dim * size.ffn_multiplier, 64)
    return _layers((heads,) * size.num_layers, (ffn_dim,) * size.num_layers)


def rising_layers(size: Size) -> Layers:
    """OpenELM's published rule: heads and widths grow evenly with depth, from half the model's width on."""
    return openelm_layers(
        num_layers=size.num_layers,
        model_dim=size.model_dim,
        head_dim=size.head_dim,
        ffn_multipliers=(0.5, size.ffn_multiplier),
        ffn_multiple=256 if size.model_dim >= 1024 else 64,  # noqa: PLR2004  (narrow models need finer steps)
    )


def pyramid_layers(size: Size) -> Layers:
    """Heads and widths fall exponentially with depth: layer i of L has 1/4 ** (i / (L - 1)) of the first layer's.

    The first layer's query heads are together as wide as the model. The feed-forward network falls with the heads, so
    that every layer keeps about the same proportion of attention to feed-forward; the smallest has one group of heads.
    """
    shares = [PYRAMID_LAST ** (layer / max(1, size.num_layers - 1)) for layer in range(size.num_layers)]
    groups = size.model_dim / size.unit
    return _layers(
        tuple(GROUP * max(1, math.floor(groups * share + 0.5)) for share in shares),
        tuple(nearest_multiple(size.model_dim * size.ffn_multiplier * share, 64) for share in shares),
    )


SHAPES: Final[Mapping[str, Shape]] = {
    # SwiGLU has three matrices instead of two: 8/3 keeps the work of the usual 4 (Shazeer 2020, arXiv:2002.05202).
    # Below a billion parameters deep and thin is better (Liu et al. 2024, arXiv:2402.14905); SmolLM2-360M has 960 / 32.
    "uniform": Shape(layers=uniform_layers, ffn_multiplier=8 / 3, aspect=30.0, qk_norm=False, norm_eps=1e-5),
    "openelm": Shape(layers=rising_layers, ffn_multiplier=4.0, aspect=78.0, qk_norm=True, norm_eps=NORM_EPS),
    # Its layers are on average about half as large as the first: deeper than OpenELM with the same parameters.
    "pyramid": Shape(layers=pyramid_layers, ffn_multiplier=4.0, aspect=50.0, qk_norm=True, norm_eps=1e-5),
}


def plan_of(shape: str, size: Size, *, vocab_size: int, max_context: int) -> ModelConfig:
    """The plan of a shape in one size, with tied embeddings.

    Raises:
        ConfigError: The shape is unknown, or the size is impossible.
    """
    kind = shape_named(shape)
    query_heads, kv_heads, ffn_dims = kind.layers(size)
    return ModelConfig(
        vocab_size=vocab_size,
        model_dim=size.model_dim,
        head_dim=size.head_dim,
        query_heads=query_heads,
        kv_heads=kv_heads,
        ffn_dims=ffn_dims,
        max_context=max_context,
        norm_eps=kind.norm_eps,
        qk_norm=kind.qk_norm,
    )


def shape_named(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in SHAPES:
        raise ConfigError(f"no shape {name!r}; there are {', '.join(sorted(SHAPES))}")
    return SHAPES[name]


def _layers(query_heads: tuple[int, ...], ffn_dims: tuple[int, ...]) -> Layers:
    return query_heads, tuple(heads // GROUP for heads in query_heads), ffn_dims
