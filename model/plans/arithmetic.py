"""What a plan costs, layer by layer: parameters, cache bytes and arithmetic of one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from model.config import ModelConfig

# A multiplication and an addition a weight; likewise for a score and for a mixed value of attention.
_FLOPS_PER_WEIGHT: Final = 2


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer of a plan.

    Attributes:
        query_heads: Number of query heads.
        kv_heads: Number of key and value heads attended over.
        ffn_dim: Inner width of the feed-forward network.
        weights_of: The layer whose stored weights it runs; itself unless shared.
        kv_of: The layer whose keys and values it attends over; itself unless shared.
        parameters: Weights stored for it; 0 where it runs those of another layer.
        weights_run: Weights that one token passes through, stored for it or not.
        kv_cache_bytes: Bytes that a token leaves in the cache; 0 where it attends over another layer's.
        kv_read_bytes: Bytes of each cached token that the layer reads, its own or another's.
        flops: Operations for one token that attends over a whole context, itself included.
    """

    query_heads: int
    kv_heads: int
    ffn_dim: int
    weights_of: int
    kv_of: int
    parameters: int
    weights_run: int
    kv_cache_bytes: int
    kv_read_bytes: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """A whole plan: its layers, and what is outside of them.

    Attributes:
        model_dim: Width of the residual stream.
        layers: One entry a layer, in order.
        parameters: All stored weights; a tied output counts once.
        embedding_parameters: Weights of the embedding, and of the output where it is not tied.
        weights_run: Weights that one token passes through, the output projection included, a looked-up row not.
        kv_cache_bytes: Bytes a token takes in the cache of all layers.
        kv_read_bytes: Bytes of each cached token that all layers read, for one new token.
        flops: Operations for one token at `context` tokens, the output projection included.
        context: Tokens that the counted token attends over.
        kv_bytes_per_element: Bytes of one number in the cache.
    """

    model_dim: int
    layers: tuple[LayerCost, ...]
    parameters: int
    embedding_parameters: int
    weights_run: int
    kv_cache_bytes: int
    kv_read_bytes: int
    flops: int
    context: int
    kv_bytes_per_element: int

    @property
    def non_embedding_parameters(self) -> int:
        """Stored weights outside the embedding and the output: the N of scaling laws (Kaplan et al. 2020)."""
        return self.parameters - self.embedding_parameters


def plan_cost(config: ModelConfig, *, context: int | None = None, kv_bytes_per_element: int = 2) -> PlanCost:
    """Count what a plan costs, without building it.

    Operations of norms, rotations and the softmax are left out: they are below one in a hundred.

    Args:
        config: The plan.
        context: Tokens that the counted token attends over; the plan's whole context where None.
        kv_bytes_per_element: 4 for a float32 cache, 2 for float16 and bfloat16, 1 for int8.
    """
    tokens = config.max_context if context is None else context
    layers = tuple(_layer_cost(config, layer, tokens, kv_bytes_per_element) for layer in range(config.num_layers))
    table = config.vocab_size * config.model_dim
    embedding = table if config.tied_embeddings else 2 * table
    return PlanCost(
        model_dim=config.model_dim,
        layers=layers,
        parameters=sum(layer.parameters for layer in layers) + embedding + config.model_dim,
        embedding_parameters=embedding,
        weights_run=sum(layer.weights_run for layer in layers) + table + config.model_dim,
        kv_cache_bytes=sum(layer.kv_cache_bytes for layer in layers),
        kv_read_bytes=sum(layer.kv_read_bytes for layer in layers),
        flops=sum(layer.flops for layer in layers) + _FLOPS_PER_WEIGHT * table,
        context=tokens,
        kv_bytes_per_element=kv_bytes_per_element,
    )


def _layer_cost(config: ModelConfig, layer: int, context: int, kv_bytes_per_element: int) -> LayerCost:
    owner, source = config.weight_layer(layer), config.kv_layer(layer)
    kv_projections = 2 * config.model_dim * config.kv_heads[layer] * config.head_dim
    others = config.model_dim * (2 * config.query_heads[layer] * config.head_dim + 3 * config.ffn_dims[layer])
    has_kv_weights, computes_kv = config.kv_layer(owner) == owner, source == layer
    run = others + computes_kv * kv_projections
    norms = 2 * config.model_dim + config.qk_norm * config.head_dim * (1 + has_kv_weights)
    kv_bytes = 2 * config.kv_heads[layer] * config.head_dim * kv_bytes_per_element
    attention = 2 * context * config.query_heads[layer] * config.head_dim  # scores, then mixed values
    return LayerCost(
        query_heads=config.query_heads[layer],
        kv_heads=config.kv_heads[layer],
        ffn_dim=config.ffn_dims[layer],
        weights_of=owner,
        kv_of=source,
        parameters=others + has_kv_weights * kv_projections + norms if owner == layer else 0,
        weights_run=run + norms,
        kv_cache_bytes=kv_bytes if computes_kv else 0,
        kv_read_bytes=kv_bytes,
        flops=_FLOPS_PER_WEIGHT * (run + attention),
    )
