"""Causal grouped-query attention over a stream of sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from model.training.lean.kernels import Kept, kernel_for

if TYPE_CHECKING:
    from model.training.lean.stream import Group, TokenStream


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
    """Keeps turned queries and keys, values and result, all of which others need too but the first two."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  (torch's context object)
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        stream: TokenStream,
        turns: Turns,
    ) -> Tensor:
        turned, seen = _turn(queries, turns), _turn(keys, turns)
        mixed, more = torch.empty_like(turned), []
        for group in stream.groups:
            kernel = kernel_for(turned.dtype, group.longest)
            part, kept = kernel.forward(*(_gather(x, group) for x in (turned, seen, values)))
            _scatter(mixed, part, group)
            more.append(kept)
        ctx.stream, ctx.turns = stream, turns
        mixed = mixed.flatten(1)
        ctx.save_for_backward(turned, seen, values, mixed, *more)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (as above)
        turned, seen, values, mixed, *more = ctx.saved_tensors
        wanted = gradients[0].to(turned.dtype).view_as(turned)
        results = tuple(torch.empty_like(x) for x in (turned, seen, values))
        for group, kept in zip(ctx.stream.groups, more, strict=True):
            q, k, v, out, gradient = (_gather(x, group) for x in (turned, seen, values, mixed.view_as(turned), wanted))
            if group.is_real is not None:
                # What stands past a sequence's end is no token: nothing may flow from there.
                gradient = gradient * group.is_real[:, None, :, None]
            found = kernel_for(turned.dtype, group.longest).backward(gradient, Kept(q, k, v, out, kept))
            for result, part in zip(results, found, strict=True):
                _scatter(result, part, group)
        back = Turns(ctx.turns.cos, -ctx.turns.sin)
        return _turn(results[0], back), _turn(results[1], back), results[2], None, None


def _gather(x: Tensor, group: Group) -> Tensor:
    """The group's part of (N, heads, head_dim), as (sequences, heads, longest, head_dim)."""
    begin, sequences = group.starts[0], len(group.starts)
    part = x[begin : begin + sequences * group.longest] if group.rows is None else x[group.rows]
    return part.view(sequences, group.longest, *x.shape[1:]).transpose(1, 2)


def _scatter(into: Tensor, part: Tensor, group: Group) -> None:
    """Undo `_gather`: write a group's part back to its place, without what stands past a sequence's end."""
    rows = part.transpose(1, 2)  # (sequences, longest, heads, head_dim)
    begin, total = group.starts[0], sum(group.lengths)
    target = into[begin : begin + total]
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
