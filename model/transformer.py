"""The decoder, read bottom-up: norm, rotary positions, attention, feed-forward, block, model.

Every trainable weight is used by calling the `nn.Linear` or norm that owns it, so that hooks on those modules see
everything (per-example gradients need that). The one functional use is the tied output; keep the embedding frozen then.
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
    """Causal grouped-query attention of one layer (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = _linear(config, layer, "q_proj")
        self.k_proj = _linear(config, layer, "k_proj")
        self.v_proj = _linear(config, layer, "v_proj")
        self.o_proj = _linear(config, layer, "o_proj")
        self.q_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        """(B, T, model_dim) -> (B, T, model_dim)."""
        queries, keys, values = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        past = 0
        if cache is not None:
            past = cache.length
            keys, values = cache.append(self.layer, keys, values)
        mixed = _attend(queries, keys, values, past=past)
        return cast("Tensor", self.o_proj(mixed.transpose(1, 2).flatten(2)))

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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        """(B, T, model_dim) -> (B, T, model_dim)."""
        x = x + self.attention(self.attention_norm(x), cos, sin, cache)
        return cast("Tensor", x + self.ffn(self.ffn_norm(x)))


class LayeredTransformer(nn.Module):
    """A decoder whose layers may differ in heads, kv heads and feed-forward width.

    Sequences of one batch are padded on the right: attention is causal, so padding never reaches a real token.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        table = torch.empty(config.vocab_size, config.model_dim)
        if not table.is_meta:  # drawing numbers on "meta" would import torch's compiler: two seconds at every load
            nn.init.normal_(table)
        self.embedding = nn.Embedding(config.vocab_size, config.model_dim, _weight=table)
        self.rotary = RotaryPositions(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
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
        for block in self.layers:
            x = block(x, cos, sin, cache)
        if cache is not None:
            cache.advance(count)
        return cast("Tensor", self.norm(x))

    def logits(self, hidden_states: Tensor) -> Tensor:
        """(..., model_dim) -> (..., vocab_size)."""
        if self.output is not None:
            return cast("Tensor", self.output(hidden_states))
        return F.linear(hidden_states, self.embedding.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device


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
