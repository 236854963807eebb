"""Two ways to compute causal grouped-query attention and its gradient; which is quicker depends on the shape.

Both take queries (S, heads, T, head_dim), keys and values (S, kv_heads, T, head_dim), and keep no T x T matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

# Queries at a time: bounds the scores in memory, and leaves out the keys that none of them may see.
_QUERY_BLOCK: Final = 64
# Torch's kernel is the quicker one for short float32 sequences; its bfloat16 backward pass takes thrice the time.
_FUSED_LONGEST: Final = 256


class Kernel(Protocol):
    """A way to compute attention."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mixed values, like `queries`, and what else the backward pass needs."""
        ...

    def backward(self, gradient: Tensor, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of queries, keys and values."""
        ...


class Kept(NamedTuple):
    """What went in and came out in the forward pass."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    mixed: Tensor | None
    more: Tensor | None


def kernel_for(dtype: torch.dtype, length: int) -> Kernel:
    """The quicker kernel for sequences of `length` tokens."""
    return Fused() if dtype == torch.float32 and length <= _FUSED_LONGEST else Blockwise()


class Fused:
    """Torch's own kernel (FlashAttention, Dao et al. 2022, arXiv:2205.14135), asked directly for both passes."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mixed values, and the logarithms of the softmax' sums."""
        mixed, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001  (only so)
            queries,
            keys,
            values,
            0.0,
            True,  # noqa: FBT003  (no dropout, causal)
        )
        return mixed, sums

    def backward(self, gradient: Tensor, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of queries, keys and values."""
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001  (as above)
            gradient,
            *kept,
            0.0,
            True,  # noqa: FBT003  (as above)
        )
        return found


class Blockwise:
    """Matrix products over blocks of queries; what a query takes of each key is computed again for its gradient."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mixed values, and nothing."""
        q, k, v = _by_kv_head(queries, keys), keys.flatten(0, 1).contiguous(), values.flatten(0, 1).contiguous()
        mixed = torch.empty_like(q)
        for block in _blocks(q.shape[2]):
            shares = _shares(q[:, :, block], k[:, : block.stop], block)
            mixed[:, :, block] = torch.bmm(shares, v[:, : block.stop]).view_as(q[:, :, block])
        return mixed.view(queries.shape), None

    def backward(self, gradient: Tensor, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of queries, keys and values."""
        q, k = _by_kv_head(kept.queries, kept.keys), kept.keys.flatten(0, 1).contiguous()
        v, wanted = kept.values.flatten(0, 1).contiguous(), _by_kv_head(gradient, kept.keys)
        for_q, for_k, for_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        scale = q.shape[-1] ** -0.5
        for block in _blocks(q.shape[2]):
            seen = slice(block.stop)
            shares, flat = _shares(q[:, :, block], k[:, seen], block), wanted[:, :, block].flatten(1, 2)
            for_v[:, seen] += torch.bmm(shares.transpose(1, 2), flat)
            for_shares = torch.bmm(flat, v[:, seen].transpose(1, 2))
            for_scores = torch._softmax_backward_data(for_shares, shares, -1, q.dtype)  # noqa: SLF001  (only so)
            for_q[:, :, block] = torch.bmm(for_scores.mul_(scale), k[:, seen]).view_as(q[:, :, block])
            for_k[:, seen] += torch.bmm(for_scores.transpose(1, 2), q[:, :, block].flatten(1, 2))
        return for_q.view(kept.queries.shape), for_k.view(kept.keys.shape), for_v.view(kept.keys.shape)


def _by_kv_head(x: Tensor, keys: Tensor) -> Tensor:
    """(S, heads, T, head_dim) -> (S * kv_heads, heads of one kv head, T, head_dim), contiguous."""
    sequences, _, length, head_dim = x.shape
    return x.reshape(sequences * keys.shape[1], -1, length, head_dim).contiguous()


def _shares(queries: Tensor, keys: Tensor, block: slice) -> Tensor:
    """What each query takes of each key: (S, heads of one kv head * queries, keys); rows sum to one."""
    heads, count = queries.shape[1], queries.shape[2]
    future = torch.full((count, block.stop), -torch.inf, dtype=queries.dtype, device=queries.device)
    future = future.triu_(block.start + 1).repeat(heads, 1)
    scores = torch.baddbmm(future, queries.flatten(1, 2), keys.transpose(1, 2), alpha=queries.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _QUERY_BLOCK, count)) for start in range(0, count, _QUERY_BLOCK))
