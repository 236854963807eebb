"""The decoder, read bottom-up: norm, rotary positions, attention, feed-forward, block, model.

Every trainable weight is used by calling the `nn.Linear` or norm that owns it, so that hooks on those modules see
everything (per-example gradients need that). The one functional use is the tied output; keep the embedding frozen then.

A block does not know its place: layers that share weights run the same one, and the model says for each of them which
layer it is and whose keys and values it attends over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.errors import ContextLengthError

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.kv_cache import KVCache

# Keys and values of all tokens so far, each (B, kv_heads, tokens, head_dim), positions turned in.
KeysValues = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim), in x's dtype."""
        wide = x.float()
        normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normalised.to(x.dtype)


class RotaryPositions(nn.Module):
    """Rotary position embedding in the half-split layout (Su et al. 2021, arXiv:2104.09864)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # device="cpu" also while the weights are only planned on the meta device: these are computed, never loaded.
        exponents = torch.arange(0, config.head_dim, 2, device="cpu", dtype=torch.float32) / config.head_dim
        positions = torch.arange(config.max_context, device="cpu", dtype=torch.float32)
        angles = torch.outer(positions, 1.0 / config.rope_base**exponents)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of `count` positions from `start`, each (count, head_dim / 2), float32."""
        return self.cos[start : start + count], self.sin[start : start + count]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn (B, heads, T, head_dim) by its positions: element i is paired with element i + head_dim / 2."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        has_own = "k_proj" in config.projections_of(layer)
        self.head_dim = config.head_dim
        self.q_proj = _linear(config, layer, "q_proj")
        self.k_proj = _linear(config, layer, "k_proj") if has_own else None
        self.v_proj = _linear(config, layer, "v_proj") if has_own else None
        self.o_proj = _linear(config, layer, "o_proj")
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm and has_own else None

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        *,
        layer: int = 0,
        shared: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """(B, T, model_dim) -> (B, T, model_dim), and the keys and values attended over.

        Args:
            x: The new tokens.
            cos: Cosine of their positions, from `RotaryPositions`.
            sin: Sine of their positions.
            cache: Where this layer's keys and values are appended.
            layer: Which layer's place in the cache.
            shared: Keys and values of an earlier layer, to attend over instead of computing them.
        """
        queries = self._heads(self.q_proj(x))
        if self.q_norm is not None:
            queries = self.q_norm(queries)
        queries = rotate(queries, cos, sin)
        keys, values = shared or self._keys_values(x, cos, sin)
        if cache is not None and shared is None:
            keys, values = cache.append(layer, keys, values)
        mixed = _attend(queries, keys, values, past=keys.shape[2] - x.shape[1])
        return cast("Tensor", self.o_proj(mixed.transpose(1, 2).flatten(2))), (keys, values)

    def _keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> KeysValues:
        keys, values = (self._heads(cast("nn.Linear", proj)(x)) for proj in (self.k_proj, self.v_proj))
        if self.k_norm is not None:
            keys = self.k_norm(keys)
        return rotate(keys, cos, sin), values

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * head_dim) -> (B, heads, T, head_dim)."""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.gate_proj = _linear(config, layer, "gate_proj")
        self.up_proj = _linear(config, layer, "up_proj")
        self.down_proj = _linear(config, layer, "down_proj")

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, model_dim) -> (B, T, model_dim)."""
        return cast("Tensor", self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.model_dim, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.model_dim, eps=config.norm_eps)
        self.ffn = FeedForward(config, layer)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        *,
        layer: int = 0,
        shared: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """(B, T, model_dim) -> (B, T, model_dim), and the keys and values attended over; as `Attention.forward`."""
        mixed, attended = self.attention(self.attention_norm(x), cos, sin, cache, layer=layer, shared=shared)
        x = x + mixed
        return x + self.ffn(self.ffn_norm(x)), attended


class LayeredTransformer(nn.Module):
    """A decoder whose layers may differ in heads, kv heads and feed-forward width.

    Sequences of one batch are padded on the right: attention is causal, so padding never reaches a real token.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Only these are kept while a pass runs: holding every layer's keys and values would cost memory for nothing.
        self._kv_lenders = {source for layer, source in enumerate(config.kv_of) if source != layer}
        table = torch.empty(config.vocab_size, config.model_dim)
        if not table.is_meta:  # drawing numbers on "meta" would import torch's compiler: two seconds at every load
            nn.init.normal_(table)
        self.embedding = nn.Embedding(config.vocab_size, config.model_dim, _weight=table)
        self.rotary = RotaryPositions(config)
        # Entry i is what layer i runs: the same block wherever weights are shared, so that it is stored once.
        blocks = {layer: Block(config, layer) for layer in config.stored_layers}
        self.layers = nn.ModuleList(blocks[config.weight_layer(layer)] for layer in range(config.num_layers))
        self.norm = RMSNorm(config.model_dim, eps=config.norm_eps)
        tied = config.tied_embeddings
        self.output = None if tied else nn.Linear(config.model_dim, config.vocab_size, bias=False)

    def forward(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each position: (B, T) int64 -> (B, T, vocab_size).

        Args:
            token_ids: Token ids; with a cache, those that follow what it holds.
            cache: Where keys and values are read and appended.

        Raises:
            ContextLengthError: More tokens than the context or the cache holds.
        """
        return self.logits(self.hidden_states(token_ids, cache))

    def hidden_states(self, token_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """What `logits` needs: (B, T) int64 -> (B, T, model_dim).

        Apart from `forward`, because logits of every position are often not needed and dominate the memory.
        """
        start = 0 if cache is None else cache.length
        count = token_ids.shape[1]
        if start + count > self.config.max_context:
            raise ContextLengthError(
                f"{start + count} tokens, the model's context holds {self.config.max_context}; shorten the input"
            )
        x = self.embedding(token_ids)
        cos, sin = self.rotary(start, count)
        attended: dict[int, KeysValues] = {}
        for layer, block in enumerate(self.layers):
            x, keys_values = block(x, cos, sin, cache, layer=layer, shared=attended.get(self.config.kv_layer(layer)))
            if layer in self._kv_lenders:
                attended[layer] = keys_values
        if cache is not None:
            cache.advance(count)
        return cast("Tensor", self.norm(x))

    def logits(self, hidden_states: Tensor) -> Tensor:
        """(..., model_dim) -> (..., vocab_size)."""
        if self.output is not None:
            return cast("Tensor", self.output(hidden_states))
        if isinstance(self.embedding, nn.Embedding):
            return F.linear(hidden_states, self.embedding.weight)
        return cast("Tensor", self.embedding.linear(hidden_states))  # quantised: never the whole table in memory

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that is computed in; quantised weights are stored in another."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device


def _linear(config: ModelConfig, layer: int, projection: str) -> nn.Linear:
    rows, columns = config.projection_shape(layer, projection)
    return nn.Linear(columns, rows, bias=False)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, *, past: int) -> Tensor:
    """Scaled dot-product attention of T new tokens over `past` + T: (B, heads, T, head_dim), like `queries`."""
    count = queries.shape[2]
    mask = None
    if past and count > 1:
        # is_causal would align the triangle with the first key; the new tokens are the last ones.
        mask = torch.ones(count, past + count, dtype=torch.bool, device=queries.device).tril(past)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=past == 0 and count > 1, enable_gqa=True
    )
