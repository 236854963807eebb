"""What stands before a projection, computed anew in the backward pass instead of being kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F  # noqa: N812  (its usual name)

if TYPE_CHECKING:
    from torch import Tensor


class Transform(Protocol):
    """A function of one or two tensors of N rows."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The result in the dtype of the step's products, and what the backward pass wants of the way there."""
        ...

    def backward(self, gradient: Tensor, on_the_way: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        """The gradient of each input; may overwrite `gradient` and `on_the_way`."""
        ...


@dataclass(frozen=True)
class Identity:
    """x, as it is."""

    dtype: torch.dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(N, dim) -> (N, dim)."""
        return inputs[0].to(self.dtype), ()

    def backward(self, gradient: Tensor, _on_the_way: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        """(N, dim) -> (N, dim)."""
        return (gradient.to(inputs[0].dtype),)


@dataclass(frozen=True)
class Normalized:
    """RMSNorm with a frozen weight, in float32 (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    dtype: torch.dtype
    weight: Tensor
    eps: float

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(..., dim) -> (..., dim); on the way x / rms and 1 / rms."""
        wide = inputs[0].float()
        squares: Tensor = torch.linalg.vecdot(wide, wide).unsqueeze(-1)
        inverse = squares.div_(wide.shape[-1]).add_(self.eps).rsqrt_()
        normalized = wide * inverse
        return (normalized * self.weight).to(self.dtype), (normalized, inverse)

    def backward(self, gradient: Tensor, on_the_way: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        """With n = x / rms and u = gradient * weight: (u - n mean(u n)) / rms."""
        normalized, inverse = on_the_way
        wanted = gradient.float().mul_(self.weight)
        along = torch.linalg.vecdot(wanted, normalized).unsqueeze(-1).div_(wanted.shape[-1])
        return (wanted.addcmul_(normalized, along, value=-1.0).mul_(inverse).to(inputs[0].dtype),)


@dataclass(frozen=True)
class Gated:
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202)."""

    dtype: torch.dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(N, ffn_dim) twice -> (N, ffn_dim); on the way silu(gate)."""
        gate, up = inputs
        opened = F.silu(gate)
        return (opened * up).to(self.dtype), (opened,)

    def backward(self, gradient: Tensor, on_the_way: tuple[Tensor, ...], *inputs: Tensor) -> tuple[Tensor, ...]:
        """The gradients of gate and up."""
        gate, up = inputs
        gradient = gradient.to(gate.dtype)
        for_up = on_the_way[0].mul_(gradient)
        for_gate: Tensor = torch.ops.aten.silu_backward(gradient.mul_(up), gate)
        return for_gate, for_up


def transformed(transform: Transform, *inputs: Tensor) -> Tensor:
    """The transform's result alone; only its inputs are kept for the backward pass."""
    result: Tensor = _Transformed.apply(transform, *inputs)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result


class _Transformed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transform: Transform, *inputs: Tensor) -> Tensor:  # noqa: ANN401  (torch's context object)
        ctx.transform = transform
        ctx.save_for_backward(*inputs)
        return transform.forward(*inputs)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (as above)
        # A copy, since a transform may overwrite the gradient it is given, and this one belongs to autograd.
        inputs = ctx.saved_tensors  # once: checkpointing hands them out a single time
        _, on_the_way = ctx.transform.forward(*inputs)
        return None, *ctx.transform.backward(gradients[0].clone(), on_the_way, *inputs)
