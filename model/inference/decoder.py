"""The decoder of `model.transformer`, lean: for generation alone, on the CPU, without modules or gradients.

Weights that read the same input are one product (queries, keys and values; gate and up). Rows of several sequences
go through the products together, while each attends over its own cache: reading a prompt, one step of many
sequences and checking a guess are the same pass. Rotary positions turn neighbouring elements instead of halves; the
rows of the projections are reordered once for that, which changes no dot product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.inference.heads import pair_order, query_scale, reorder_heads
from model.inference.linears import SCALED_RANGE, Linear, Precision, pack, takes_scaled_inputs
from model.inference.source import CheckpointSource
from model.quantization import QuantizedWeight, dequantize, quantize_int8

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model.inference.adapters import PackedAdapter
    from model.inference.cache import SequenceCache
    from model.inference.source import WeightSource

_MIN_POSITIONS: Final = 1024
_SMALLEST: Final = 1e-20


@dataclass(frozen=True)
class Chunk:
    """The new tokens of one sequence in one pass.

    Attributes:
        tokens: At least one.
        cache: Where they go.
        adapter: What is added to the base for them.
        is_whole: Whether the logits after every token are asked for, rather than after the last.
    """

    tokens: Sequence[int]
    cache: SequenceCache
    adapter: PackedAdapter | None = None
    is_whole: bool = False


_Adapted = tuple["PackedAdapter", int, int]
"""What is added to the base for the rows from one to the other."""


@dataclass(frozen=True)
class _Layer:
    """The packed weights of one stored layer.

    Attributes:
        layer: Its number.
        query_heads: Its number of them.
        turned_heads: Query and key heads, which rotary positions turn.
    """

    layer: int
    query_heads: int
    turned_heads: int
    attention_norm: Tensor
    attention_scale: float
    qkv: Linear
    head_norm: Tensor | None
    o: Linear
    ffn_norm: Tensor
    ffn_scale: float
    gate_up: Linear
    down: Linear


class PackedDecoder:
    """A model packed for generation; not for two threads at once (`Engine` sees to that).

    Attributes:
        config: Its shape.
        precision: What its products are computed from.
        num_bytes: Bytes of its weights.
    """

    def __init__(self, source: WeightSource, *, precision: Precision) -> None:
        self.config = source.config
        self.precision: Precision = precision
        self._embedding = _Embedding(source.read("embedding.weight"), precision)
        head = "embedding.weight" if self.config.tied_embeddings else "output.weight"
        # int4 is kept away from the logits: rounding there changes the most likely token.
        head_precision: Precision = "int8" if precision == "int4" else precision
        self._norm, scale = _prescaled(_dense(source.read("norm.weight")), head_precision)
        self._head = pack([source.read(head)], head_precision, input_range=SCALED_RANGE * scale)
        self._layers = {layer: self._pack_layer(source, layer) for layer in self.config.stored_layers}
        self._run_by = [self._layers[self.config.weight_layer(layer)] for layer in range(self.config.num_layers)]
        self._kv_of = [self.config.kv_layer(layer) for layer in range(self.config.num_layers)]
        self._turns = torch.empty(0)
        self._eps = torch.tensor(self.config.norm_eps)
        linears = [part for layer in self._layers.values() for part in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        self.num_bytes = self._embedding.num_bytes + self._head.num_bytes + sum(part.num_bytes for part in linears)

    @classmethod
    def from_folder(cls, folder: Path, *, precision: Precision) -> Self:
        """Pack a checkpoint's weights, one tensor at a time.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        with CheckpointSource(folder) as source:
            return cls(source, precision=precision)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Take in new tokens of sequences, each a cache of its own.

        Returns:
            For each chunk the logits (1, vocab_size) after its last token, or (T, vocab_size) after each, float32.

        Raises:
            ContextLengthError: A sequence became longer than the context.
        """
        for chunk in chunks:
            chunk.cache.reserve(len(chunk.tokens))
        x = self._embedding(torch.tensor([token for chunk in chunks for token in chunk.tokens]))
        spans = _spans(chunks)
        adapted = [(c.adapter, *span) for c, span in zip(chunks, spans, strict=True) if c.adapter is not None]
        turns = torch.cat([self._turned(c.cache.length, len(c.tokens)) for c in chunks]) if len(chunks) > 1 else (
            self._turned(chunks[0].cache.length, len(chunks[0].tokens))
        )  # fmt: skip
        for layer in range(self.config.num_layers):
            x = self._layer(x, layer, chunks, spans, turns, adapted)
        for chunk in chunks:
            chunk.cache.tokens.extend(chunk.tokens)
        wanted = [
            x[begin:end] if c.is_whole else x[end - 1 : end] for c, (begin, end) in zip(chunks, spans, strict=True)
        ]
        rows = self._normed(wanted[0] if len(wanted) == 1 else torch.cat(wanted), self._norm)
        return list(torch.split(self._head(rows), [part.shape[0] for part in wanted]))

    def _layer(
        self,
        x: Tensor,
        layer: int,
        chunks: Sequence[Chunk],
        spans: Sequence[tuple[int, int]],
        turns: Tensor,
        adapted: Sequence[_Adapted],
    ) -> Tensor:
        weights = self._run_by[layer]
        normed = self._normed(x, weights.attention_norm)
        qkv = _product(weights.qkv, normed, ("qkv", weights.layer, weights.attention_scale), adapted)
        heads = qkv.view(x.shape[0], -1, self.config.head_dim)
        turned = heads[:, : weights.turned_heads]
        if weights.head_norm is not None:
            unit = F.rms_norm(turned, (self.config.head_dim,), None, self.config.norm_eps)
            torch.mul(unit, weights.head_norm, out=turned)
        torch.view_as_complex(turned.view(x.shape[0], weights.turned_heads, -1, 2)).mul_(turns)
        if len(chunks) == 1:
            attended = self._attend(heads, layer, chunks[0].cache, weights.query_heads)
        else:
            mixed = [
                self._attend(heads[begin:end], layer, chunk.cache, weights.query_heads)
                for chunk, (begin, end) in zip(chunks, spans, strict=True)
            ]
            attended = torch.cat(mixed)
        x = x + _product(weights.o, attended, ("o", weights.layer, 1.0), adapted)
        normed = self._normed(x, weights.ffn_norm)
        gate, up = _product(weights.gate_up, normed, ("gate_up", weights.layer, weights.ffn_scale), adapted).chunk(
            2, -1
        )
        return x.add_(_product(weights.down, F.silu(gate).mul_(up), ("down", weights.layer, 1.0), adapted))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm (Zhang and Sennrich 2019) in fewer steps than torch's own takes on a processor."""
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        inverse = torch.addcmul(self._eps, norms, norms, value=1.0 / self.config.model_dim).rsqrt_()
        return (x * weight).mul_(inverse)

    def _attend(self, heads: Tensor, layer: int, cache: SequenceCache, queries_of: int) -> Tensor:
        """Attention of one sequence's T new tokens: (T, heads, head_dim) -> (T, query_heads * head_dim)."""
        count, source, at = heads.shape[0], self._kv_of[layer], cache.length
        if source == layer:
            cache.write(layer, heads[:, queries_of:].transpose(0, 1), at)
        keys, values, first = cache.read(source, at + count, count)
        if keys.dtype != heads.dtype:
            heads = heads.to(keys.dtype)
        if count == 1:
            # Explicit products of grouped heads: for one token they are faster than the fused kernel.
            queries = heads[0, :queries_of].view(keys.shape[0], -1, self.config.head_dim)
            scores = torch.bmm(queries, keys.transpose(1, 2))
            return torch.bmm(scores.float().softmax(-1).to(values.dtype), values).reshape(1, -1).float()
        mixed = F.scaled_dot_product_attention(
            heads[:, :queries_of].transpose(0, 1).unsqueeze(0),
            keys.unsqueeze(0),
            values.unsqueeze(0),
            attn_mask=_mask(count, at, first, cache.window),
            is_causal=at == first and cache.window is None,
            scale=1.0,
            enable_gqa=True,
        )
        return mixed[0].transpose(0, 1).reshape(count, -1).float()

    def _turned(self, start: int, count: int) -> Tensor:
        """Complex turns of `count` positions from `start`: (count, 1, head_dim / 2) (Su et al. 2021)."""
        if start + count > self._turns.shape[0]:
            exponents = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32) / self.config.head_dim
            positions = torch.arange(max(_MIN_POSITIONS, 2 * (start + count)), dtype=torch.float32)
            angles = torch.outer(positions, 1.0 / self.config.rope_base**exponents)
            self._turns = torch.complex(angles.cos(), angles.sin()).unsqueeze(1)
        return self._turns[start : start + count]

    def _pack_layer(self, source: WeightSource, layer: int) -> _Layer:
        config, precision = self.config, self.precision
        projections = config.projections_of(layer)
        order = pair_order(config.head_dim)
        # Attention's factor is in the queries' weights, or in their norm, rather than applied to every score.
        scale = query_scale(config)

        def weight(projection: str) -> Tensor | QuantizedWeight:
            read = source.read(f"{config.projection_path(layer, projection)}.weight")
            if projection == "q_proj":
                return _rows(read, order, factor=1.0 if config.qk_norm else scale)
            return _rows(read, order) if projection == "k_proj" else read

        head_norm = None
        if config.qk_norm:
            queries = _dense(source.read(f"layers.{layer}.attention.q_norm.weight"))[order] * scale
            head_norm = queries.expand(config.query_heads[layer], -1)
            if "k_proj" in projections:
                keys = _dense(source.read(f"layers.{layer}.attention.k_norm.weight"))[order]
                head_norm = torch.cat((head_norm, keys.expand(config.kv_heads[layer], -1)))
        attention_norm, in_scale = _prescaled(_dense(source.read(f"layers.{layer}.attention_norm.weight")), precision)
        ffn_norm, ffn_scale = _prescaled(_dense(source.read(f"layers.{layer}.ffn_norm.weight")), precision)
        qkv = [weight(p) for p in ("q_proj", "k_proj", "v_proj") if p in projections]
        has_keys = "k_proj" in projections
        return _Layer(
            layer=layer,
            query_heads=config.query_heads[layer],
            turned_heads=config.query_heads[layer] + (config.kv_heads[layer] if has_keys else 0),
            attention_norm=attention_norm,
            attention_scale=in_scale,
            qkv=pack(qkv, precision, input_range=SCALED_RANGE * in_scale),
            head_norm=head_norm,
            o=pack([weight("o_proj")], precision),
            ffn_norm=ffn_norm,
            ffn_scale=ffn_scale,
            gate_up=pack([weight("gate_proj"), weight("up_proj")], precision, input_range=SCALED_RANGE * ffn_scale),
            down=pack([weight("down_proj")], precision),
        )


class _Embedding:
    """Rows of the embedding, in about the precision of the rest."""

    def __init__(self, weight: Tensor | QuantizedWeight, precision: Precision) -> None:
        self._quantized: QuantizedWeight | None = None
        if precision in {"int8", "int4"}:
            is_int8 = isinstance(weight, QuantizedWeight) and weight.group_size is None
            self._quantized = cast("QuantizedWeight", weight) if is_int8 else quantize_int8(_dense(weight))
            self._table = self._quantized.values
        else:
            self._table = _dense(weight).to(torch.float32 if precision == "float32" else torch.bfloat16)
        self.num_bytes = self._table.nbytes

    def __call__(self, token_ids: Tensor) -> Tensor:
        """(N,) -> (N, model_dim), float32."""
        rows = self._table[token_ids].float()
        return rows if self._quantized is None else rows.mul_(self._quantized.scales[token_ids].float().unsqueeze(1))


def _prescaled(norm: Tensor, precision: Precision) -> tuple[Tensor, float]:
    """A norm's weight that brings what it normalises into the range an integer product wants, and how to undo that.

    A vector divided by its root mean square has no element above sqrt(dim), so the range is known without looking.
    """
    if not takes_scaled_inputs(precision):
        return norm, 1.0
    largest = float(norm.abs().max()) * math.sqrt(norm.shape[0])
    scale = max(largest, _SMALLEST) / SCALED_RANGE
    return norm / scale, scale


def _rows(weight: Tensor | QuantizedWeight, order: Tensor, *, factor: float = 1.0) -> Tensor | QuantizedWeight:
    if not isinstance(weight, QuantizedWeight):
        return reorder_heads(weight.float() * factor, order)
    zeros = None if weight.zeros is None else reorder_heads(weight.zeros.float() * factor, order)
    return QuantizedWeight(
        reorder_heads(weight.values, order),
        reorder_heads(weight.scales.float() * factor, order),
        zeros,
        weight.bits,
        weight.group_size,
    )


def _dense(weight: Tensor | QuantizedWeight) -> Tensor:
    return dequantize(weight) if isinstance(weight, QuantizedWeight) else weight.float()


def _spans(chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
    """Which rows belong to which chunk."""
    spans, end = [], 0
    for chunk in chunks:
        spans.append((end, end + len(chunk.tokens)))
        end += len(chunk.tokens)
    return spans


def _product(linear: Linear, x: Tensor, place: tuple[str, int, float], adapted: Sequence[_Adapted]) -> Tensor:
    """Multiply x with W^T, and add adapters to their sequences' rows; `place` is group, layer, scale of x."""
    out = linear(x)
    for adapter, begin, end in adapted:
        adapter.add(out[begin:end], x[begin:end], place)
    return out


def _mask(count: int, at: int, first: int, window: int | None) -> Tensor | None:
    """Which keys from position `first` on each new token may see; None where the kernel's causal mask fits."""
    if at == first and window is None:
        return None
    rows = torch.arange(at, at + count).unsqueeze(1)
    columns = torch.arange(first, at + count)
    seen = columns <= rows
    return seen if window is None else seen & (columns > rows - window)
