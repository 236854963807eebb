"""Layers whose frozen weight lies in memory as it does on disk: int8, or int4 two a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.quantization.weights import INT8_LARGEST, QuantizedWeight, dequantize, from_stored, to_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Numbers that are made dense at once, so that an output over a vocabulary never needs its whole matrix in memory.
_DENSE_NUMBERS: Final = 1 << 22


class QuantizedModule(nn.Module):
    """Holds a `QuantizedWeight` in its stored form, as buffers.

    Attributes:
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        bits: 8 or 4.
        group_size: Inputs that share a scale; None for int8.
        dtype: What is computed in.
        input_group: Neighbouring inputs that are rounded to int8 with a scale of their own as well, which is what an
            integer kernel computes (here in floating point); None: inputs are not rounded.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    tops: Tensor | None

    def __init__(
        self,
        stored: Mapping[str, Tensor],
        *,
        bits: int,
        group_size: int | None,
        dtype: torch.dtype = torch.float32,
        input_group: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("values", stored["values"])
        self.register_buffer("scales", stored["scales"])
        self.register_buffer("zeros", stored.get("zeros"))
        self.register_buffer("tops", stored.get("tops"))
        self.bits = bits
        self.group_size = group_size
        self.dtype = dtype
        self.input_group = input_group
        self.out_features: int = stored["values"].shape[0]
        self.in_features: int = stored["values"].shape[1] * (8 // bits)

    @classmethod
    def of(cls, quantized: QuantizedWeight, *, dtype: torch.dtype = torch.float32) -> Self:
        """The layer of a weight."""
        return cls(to_stored(quantized), bits=quantized.bits, group_size=quantized.group_size, dtype=dtype)

    @property
    def has_int8_inputs(self) -> bool:
        """Whether inputs are rounded too."""
        return self.input_group is not None

    @property
    def stored(self) -> dict[str, Tensor]:
        """The buffers, by the names they have on disk."""
        optional = {"zeros": self.zeros, "tops": self.tops}
        return {"values": self.values, "scales": self.scales} | {
            name: part for name, part in optional.items() if part is not None
        }

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight, int4 unpacked; int8 shares the memory of this layer."""
        return from_stored(self.stored, bits=self.bits, group_size=self.group_size)

    @property
    def weight(self) -> Tensor:
        """The dense weight (out, in) in `dtype`, made anew at each call: for merging and exporting."""
        return self.rows(slice(None))

    def rows(self, chosen: slice | Tensor) -> Tensor:
        """Dense rows, in `dtype`: (number chosen, in)."""
        part = {name: tensor[chosen] for name, tensor in self.stored.items()}
        return dequantize(from_stored(part, bits=self.bits, group_size=self.group_size)).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  (torch's)
        """Move as told; a conversion such as `model.bfloat16()` changes what is computed in, never what is stored."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.scales.device)).dtype
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]  # torch's
        return self

    def linear(self, x: Tensor) -> Tensor:
        """Compute x W^T: (..., in) -> (..., out). Backward makes the weight dense again instead of keeping it."""
        return _Linear.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]  # torch leaves `apply` untyped

    def slices(self) -> Iterator[slice]:
        """Slices of the rows, each small enough to be made dense."""
        step = max(1, _DENSE_NUMBERS // self.in_features)
        return (slice(start, start + step) for start in range(0, self.out_features, step))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        groups = "per channel" if self.group_size is None else f"groups of {self.group_size}"
        return f"{self.in_features} -> {self.out_features}, int{self.bits} {groups}"


class QuantizedLinear(QuantizedModule):
    """A frozen linear layer without a bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.linear(x)


class QuantizedEmbedding(QuantizedModule):
    """A frozen embedding, which may serve as the output projection too."""

    def forward(self, token_ids: Tensor) -> Tensor:
        """(...) int64 -> (..., in)."""
        return self.rows(token_ids.reshape(-1)).view(*token_ids.shape, self.in_features)


class _Linear(torch.autograd.Function):
    """Product with a weight that is dense only while it is used (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedModule) -> Tensor:  # noqa: ANN401  (torch's context object)
        ctx.layer = layer
        inputs = x if layer.input_group is None else _round_to_int8(x, layer.input_group)
        parts = [F.linear(inputs, layer.rows(chosen)) for chosen in layer.slices()]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  (as above)
        # Rounding the inputs counts as the identity (straight-through), or nothing below would learn.
        (gradient,) = gradients
        layer: QuantizedModule = ctx.layer
        parts = (gradient[..., chosen] @ layer.rows(chosen) for chosen in layer.slices())
        total = next(parts)
        for part in parts:
            total = total + part
        return total, None


def _round_to_int8(x: Tensor, group: int) -> Tensor:
    """Each group of inputs as whole numbers in -127..127 times its scale: (..., in) -> (..., in)."""
    groups = x.reshape(*x.shape[:-1], -1, group)
    scales = groups.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / INT8_LARGEST
    return (groups / scales).round_().clamp_(-INT8_LARGEST, INT8_LARGEST).mul_(scales).view_as(x)
