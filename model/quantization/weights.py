"""One weight in few bits: int8 per output channel, int4 per group of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from model.errors import QuantizationError
from model.quantization.scales import decode_scales, encode_scales, nearest_coded
from model.quantization.search import fit_groups, round_to_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

INT4_MIDDLE: Final = 8
INT8_LARGEST: Final = 127


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix (out, in) as whole numbers and scales.

    int8: weight = values * scales. int4 symmetric: weight = (values - 8) * scales. int4 asymmetric:
    weight = values * scales + zeros, so `zeros` holds the weight that the value 0 stands for (MLX calls it the bias,
    GGUF's Q4_1 the minimum).

    Attributes:
        values: int8 (out, in), or uint8 in 0..15, not packed (out, in).
        scales: float32 (out,) of int8; float16 (out, in / group_size) of int4, where a scale may be negative.
        zeros: float16 (out, in / group_size) of asymmetric int4; None otherwise.
        bits: 8 or 4.
        group_size: Inputs that share a scale; None for int8.
        tops: float16 (out, 2) where scales and zeros are stored in 8 bits, as shares of these (`scales.py`).
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group_size: int | None
    tops: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def stored_bytes(self) -> int:
        """Bytes on disk, with two int4 values in one byte."""
        return sum(part.nbytes for part in to_stored(self).values())


def quantize_int8(weight: Tensor) -> QuantizedWeight:
    """Round each row of (out, in) to -127..127 times its own scale.

    Raises:
        QuantizationError: No matrix, or a value is not finite.
    """
    weight = _matrix(weight)
    scales = weight.abs().amax(dim=1) / INT8_LARGEST
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    values = (weight / scales[:, None]).round_().clamp_(-INT8_LARGEST, INT8_LARGEST).to(torch.int8)
    return QuantizedWeight(values, scales, None, bits=8, group_size=None)


def quantize_int4(
    weight: Tensor,
    group_size: int = 32,
    *,
    symmetric: bool = False,
    scale_bits: int = 16,
    importance: Tensor | None = None,
) -> QuantizedWeight:
    """Round each group of inputs of (out, in) to 16 levels, placed where the squared error is least.

    The levels are searched: a group may clip its extremes when the rest gains more than they lose.

    Args:
        weight: (out, in).
        group_size: Inputs that share a scale; divides `in`.
        symmetric: Levels lie around zero: half the scales to store, a larger error.
        scale_bits: Of each scale and zero, 16 or 8; 8 not with `symmetric`.
        importance: (in,) weights of the squared error, such as the mean square of each input.

    Raises:
        QuantizationError: No matrix, a value is not finite, or the groups do not fit.
    """
    weight = _matrix(weight)
    rows, columns = weight.shape
    if group_size < 2 or group_size % 2 or columns % group_size:  # noqa: PLR2004  (two values share a byte)
        raise QuantizationError(f"groups of {group_size} do not divide rows of {columns}; choose an even divisor")
    groups = weight.view(rows, columns // group_size, group_size)
    weights = None if importance is None else importance.float().view(1, columns // group_size, group_size)
    scales, zeros = fit_groups(groups, symmetric=symmetric, importance=weights)
    tops = None
    if scale_bits == 8 and zeros is not None:  # noqa: PLR2004  (coded)
        scales, zeros, tops = nearest_coded(scales, zeros)
    values = round_to_groups(groups, scales, zeros).view(rows, columns)
    return QuantizedWeight(values, scales, zeros, bits=4, group_size=group_size, tops=tops)


def dequantize(quantized: QuantizedWeight) -> Tensor:
    """The matrix that the whole numbers stand for: float32 (out, in)."""
    values = quantized.values.float()
    if quantized.group_size is None:
        return values.mul_(quantized.scales.float()[:, None])
    grouped = values.view(*quantized.scales.shape, quantized.group_size)
    scales = quantized.scales.float().unsqueeze(-1)
    if quantized.zeros is None:
        return grouped.sub_(INT4_MIDDLE).mul_(scales).view_as(values)
    return grouped.mul_(scales).add_(quantized.zeros.float().unsqueeze(-1)).view_as(values)


def to_stored(quantized: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors to keep: `values` (int4 packed two a byte), `scales` and, where there are any, `zeros` and `tops`."""
    values = pack_int4(quantized.values) if quantized.bits == 4 else quantized.values  # noqa: PLR2004  (int4)
    if quantized.zeros is None:
        return {"values": values, "scales": quantized.scales}
    if quantized.tops is None:
        return {"values": values, "scales": quantized.scales, "zeros": quantized.zeros}
    scales, zeros = encode_scales(quantized.scales, quantized.zeros, quantized.tops)
    return {"values": values, "scales": scales, "zeros": zeros, "tops": quantized.tops}


def from_stored(stored: Mapping[str, Tensor], *, bits: int, group_size: int | None) -> QuantizedWeight:
    """What `to_stored` was given."""
    values = unpack_int4(stored["values"]) if bits == 4 else stored["values"]  # noqa: PLR2004  (int4)
    scales, zeros, tops = stored["scales"], stored.get("zeros"), stored.get("tops")
    if zeros is not None and tops is not None:
        scales, zeros = decode_scales(scales, zeros, tops)
    return QuantizedWeight(values, scales, zeros, bits=bits, group_size=group_size, tops=tops)


def pack_int4(values: Tensor) -> Tensor:
    """Two values a byte, the even column in the low half: uint8 (out, in) of 0..15 -> uint8 (out, in / 2)."""
    return values[:, 0::2] | (values[:, 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """What `pack_int4` packed: uint8 (out, in / 2) -> uint8 (out, in) of 0..15."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def _matrix(weight: Tensor) -> Tensor:
    if weight.ndim != 2:  # noqa: PLR2004  (a matrix)
        raise QuantizationError(f"only matrices are quantised, this weight has shape {list(weight.shape)}")
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError("the weight has values that are not finite; the base is damaged, import it again")
    return weight.contiguous()
