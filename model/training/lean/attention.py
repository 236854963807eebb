"""Causal grouped-query attention over a stream of sequences; scores are computed again in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.training.lean.stream import Group, TokenStream

# Queries at a time: bounds the scores in memory, and leaves out the keys that none of them may see.
_QUERY_BLOCK: Final = 64


class Turns(NamedTuple):
    """Cosine and sine of each token's position, (N, 1, head_dim / 2), float32."""

    cos: Tensor
    sin: Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, stream: TokenStream, turns: Turns) -> Tensor:
    """Attention within each sequence; positions are turned in here (Su et al. 2021, arXiv:2104.09864).

    Args:
        queries: (N, query_heads, head_dim), not turned.
        keys: (N, kv_heads, head_dim), not turned.
        values: (N, kv_heads, head_dim).
        stream: Where the sequences are.
        turns: Of every token.

    Returns:
        (N, query_heads * head_dim).
    """
    result: Tensor = _Attend.apply(queries, keys, values, stream, turns)  # type: ignore[no-untyped-call]
    return result


class _Attend(torch.autograd.Function):
    """Keeps turned queries and keys, and the values; nothing of their product."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch's context object)
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        stream: TokenStream,
        turns: Turns,
    ) -> Tensor:
        kv_heads = keys.shape[1]
        turned, seen = _turn(queries, turns), _turn(keys, turns)
        ctx.save_for_backward(turned, seen, values)
        ctx.stream, ctx.turns = stream, turns
        mixed = torch.empty_like(queries)
        for group in stream.groups:
            q, k, v = (_gather(x, group, kv_heads) for x in (turned, seen, values))
            out = torch.empty_like(q)
            for block in _blocks(group.longest):
                shares = _shares(q[:, :, block], k[:, 0, : block.stop], block)
                out[:, :, block] = torch.bmm(shares, v[:, 0, : block.stop]).view_as(q[:, :, block])
            _scatter(mixed, out, group)
        return mixed.flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (as above)
        turned, seen, values = ctx.saved_tensors
        stream, turns, kv_heads = ctx.stream, ctx.turns, seen.shape[1]
        wanted = gradients[0].to(turned.dtype).view_as(turned)
        results = tuple(torch.empty_like(x) for x in (turned, seen, values))
        for group in stream.groups:
            parts = tuple(_gather(x, group, kv_heads) for x in (turned, seen, values, wanted))
            if group.is_real is not None:
                # What stands past a sequence's end is no token: nothing may flow from there.
                parts[3].view(len(group.starts), -1, *parts[3].shape[1:]).mul_(group.is_real[:, None, None, :, None])
            for result, found in zip(results, _group_back(*parts), strict=True):
                _scatter(result, found, group)
        for_queries, for_keys, for_values = results
        back = Turns(turns.cos, -turns.sin)
        return _turn(for_queries, back), _turn(for_keys, back), for_values, None, None


def _group_back(q: Tensor, k: Tensor, v: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of one group, from the gradient of its output; all as `_gather` gives them."""
    for_q, for_k, for_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    scale = q.shape[-1] ** -0.5
    for block in _blocks(q.shape[2]):
        some, few, many = q[:, :, block], k[:, 0, : block.stop], v[:, 0, : block.stop]
        shares = _shares(some, few, block)
        flat = wanted[:, :, block].flatten(1, 2)
        for_v[:, 0, : block.stop].baddbmm_(shares.transpose(1, 2), flat)
        for_shares = torch.bmm(flat, many.transpose(1, 2))
        for_scores = torch._softmax_backward_data(for_shares, shares, -1, shares.dtype)  # noqa: SLF001  (no other way)
        for_q[:, :, block] = torch.bmm(for_scores, few).mul_(scale).view_as(some)
        for_k[:, 0, : block.stop].baddbmm_(for_scores.transpose(1, 2), some.flatten(1, 2), alpha=scale)
    return for_q, for_k, for_v


def _shares(queries: Tensor, keys: Tensor, block: slice) -> Tensor:
    """What each query takes of each key: (S, heads of one kv head * queries, keys), rows sum to one."""
    heads, count = queries.shape[1], queries.shape[2]
    future = torch.full((count, block.stop), -torch.inf, dtype=queries.dtype, device=queries.device)
    future = future.triu_(block.start + 1).repeat(heads, 1)
    scores = torch.baddbmm(future, queries.flatten(1, 2), keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _QUERY_BLOCK, count)) for start in range(0, count, _QUERY_BLOCK))


def _gather(x: Tensor, group: Group, kv_heads: int) -> Tensor:
    """The group's part of (N, heads, head_dim) as (sequences * kv_heads, heads / kv_heads, longest, head_dim)."""
    sequences, longest = len(group.starts), group.longest
    part = x[group.starts[0] : group.starts[0] + sequences * longest] if group.rows is None else x[group.rows]
    split = part.view(sequences, longest, kv_heads, -1, x.shape[-1])
    return split.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()


def _scatter(into: Tensor, part: Tensor, group: Group) -> None:
    """Undo `_gather`: write a group's part back to its place, without what stands past a sequence's end."""
    sequences = len(group.starts)
    rows = part.view(sequences, -1, *part.shape[1:]).permute(0, 3, 1, 2, 4)  # (sequences, longest, kv_heads, ...)
    begin, total = group.starts[0], sum(group.lengths)
    target = into[begin : begin + total].view(total, *rows.shape[2:])
    if group.is_real is None:
        target.view(rows.shape).copy_(rows)
    else:
        target.copy_(rows[group.is_real])


def _turn(x: Tensor, turns: Turns) -> Tensor:
    """Turn (N, heads, head_dim) by its positions, in float32; element i is paired with element i + head_dim / 2."""
    wide = x.float()
    turned = torch.empty_like(wide)
    (first, second), (out_first, out_second) = wide.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, turns.cos, out=out_first).addcmul_(second, turns.sin, value=-1.0)
    torch.mul(second, turns.cos, out=out_second).addcmul_(first, turns.sin)
    return turned.to(x.dtype)
