"""Plans whose layers share: the same weights run several times, or one layer's keys and values serve several layers."""

from __future__ import annotations

import dataclasses
from itertools import chain, repeat
from typing import TYPE_CHECKING

from model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model.config import ModelConfig


def with_repeated_layers(config: ModelConfig, times: int) -> ModelConfig:
    """Run each layer's weights several times in a row: deeper with the same bytes to store.

    Liu et al. 2024 (MobileLLM-LS, arXiv:2402.14905) repeat each block at once, because what was just read may still be
    in a cache; they gain most from 2.

    Raises:
        ConfigError: The plan shares already, or the number is not positive.
    """
    _require_plain(config, "repeat layers")
    if times < 1:
        raise ConfigError(f"layers run once or more, not {times} times")
    if times == 1:
        return config
    return dataclasses.replace(
        config,
        query_heads=_repeated(config.query_heads, times),
        kv_heads=_repeated(config.kv_heads, times),
        ffn_dims=_repeated(config.ffn_dims, times),
        weights_of=_repeated((layer * times for layer in range(config.num_layers)), times),
    )


def with_shared_kv(config: ModelConfig, span: int) -> ModelConfig:
    """Let up to `span` consecutive layers with equal kv heads attend over the first one's keys and values.

    Brandon et al. 2024 (arXiv:2405.12981) halve the cache with a span of 2 at hardly any loss; more costs more.

    Raises:
        ConfigError: The plan shares keys and values already, or the span is not positive.
    """
    if config.kv_of:
        raise ConfigError("the plan shares keys and values already")
    if span < 1:
        raise ConfigError(f"keys and values can serve one layer or more, not {span}")
    if span == 1:
        return config
    sources: list[int] = []
    for layer in range(config.num_layers):
        source = sources[-1] if sources else 0
        fits = config.kv_heads[source] == config.kv_heads[layer] and layer - source < span
        # A layer that computes its own needs weights for it: those of a layer that is lent its keys have none.
        owner = config.weight_layer(layer)
        needs = owner < layer and sources[owner] != owner
        if needs and not fits:
            raise ConfigError(
                f"layer {layer} runs the weights of layer {owner}, which would have no keys and values of its own with "
                f"a span of {span}; take a span that the number of repeats divides"
            )
        sources.append(source if fits else layer)
    return dataclasses.replace(config, kv_of=tuple(sources))


def _repeated(values: Iterable[int], times: int) -> tuple[int, ...]:
    return tuple(chain.from_iterable(repeat(value, times) for value in values))


def _require_plain(config: ModelConfig, what: str) -> None:
    if config.weights_of or config.kv_of:
        raise ConfigError(f"cannot {what}: the plan shares layers or keys and values already")
