"""OpenELM's layer-wise scaling: heads and feed-forward widths grow with depth (Mehta et al. 2024, arXiv:2404.14619).

Layer i of L takes the i-th of L evenly spaced multipliers, rounded to two digits; a width is the model's width times
that multiplier, rounded to what the hardware likes. The rounding is part of the published shapes: it is exact here.
"""

from __future__ import annotations

from typing import Final

from model.config import ModelConfig

QUERY_MULTIPLIERS: Final = (0.5, 1.0)
FFN_MULTIPLIERS: Final = (0.5, 4.0)
GROUP: Final = 4  # query heads that share a kv head
FFN_MULTIPLE: Final = 256
NORM_EPS: Final = 1e-6


def evenly_spaced(first: float, last: float, count: int) -> tuple[float, ...]:
    """`count` multipliers from `first` to `last`, rounded to two digits as the published models were."""
    step = (last - first) / max(1, count - 1)
    return tuple(round(first + index * step, 2) for index in range(count))


def nearest_multiple(value: float, multiple: int) -> int:
    """The multiple nearest to `value`, halves upwards, at least one and never more than 10 % below `value`."""
    nearest = max(multiple, int(value + multiple / 2) // multiple * multiple)
    # Narrow layers would otherwise lose a tenth of their width to rounding (Sandler et al. 2018, arXiv:1801.04381).
    return nearest + multiple if nearest < 0.9 * value else nearest


def openelm_layers(
    *,
    num_layers: int,
    model_dim: int,
    head_dim: int,
    ffn_multipliers: tuple[float, float] = FFN_MULTIPLIERS,
    ffn_multiple: int = FFN_MULTIPLE,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Query heads, kv heads and feed-forward widths, one entry a layer, by the published formulas."""
    query_heads = tuple(
        nearest_multiple(model_dim * multiplier, head_dim * GROUP) // head_dim
        for multiplier in evenly_spaced(*QUERY_MULTIPLIERS, num_layers)
    )
    ffn_dims = tuple(
        nearest_multiple(model_dim * multiplier, ffn_multiple)
        for multiplier in evenly_spaced(*ffn_multipliers, num_layers)
    )
    return query_heads, tuple(heads // GROUP for heads in query_heads), ffn_dims


def openelm(*, num_layers: int, model_dim: int, head_dim: int) -> ModelConfig:
    """One of the published sizes: everything but depth and widths is the same for all of them."""
    query_heads, kv_heads, ffn_dims = openelm_layers(num_layers=num_layers, model_dim=model_dim, head_dim=head_dim)
    return ModelConfig(
        vocab_size=32_000,
        model_dim=model_dim,
        head_dim=head_dim,
        query_heads=query_heads,
        kv_heads=kv_heads,
        ffn_dims=ffn_dims,
        max_context=2048,
        norm_eps=NORM_EPS,
        qk_norm=True,
    )
