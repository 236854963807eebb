"""Scales and zeros of int4 groups in 8 bits each, as shares of the largest of their row (double quantisation).

The idea is that of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3) and of llama.cpp's K formats. A float16
scale and a float16 zero for 32 inputs cost one bit a weight; in 8 bits, with two numbers a row, they cost half of it.
What a code means is rounded to float16, so that every export that holds float16 scales holds exactly the same weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor

_SCALE_CODES: Final = 255
_ZERO_CODES: Final = 127
# Its 255th part is still above zero in float16.
_SMALLEST_TOP: Final = 2.0**-14


def tops_of(scales: Tensor, zeros: Tensor) -> Tensor:
    """The largest scale and the largest zero, by magnitude, of each row: float16 (out, 2)."""
    return torch.stack((scales.abs().amax(1).clamp_min(_SMALLEST_TOP), zeros.abs().amax(1)), dim=1).half()


def encode_scales(scales: Tensor, zeros: Tensor, tops: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codes: uint8 1..255 for scales, int8 -127..127 for zeros, each (out, groups)."""
    largest = tops.float().clamp_min(1e-12)
    scale_codes = (scales.float() / largest[:, :1] * _SCALE_CODES).round_().clamp_(1, _SCALE_CODES)
    zero_codes = (zeros.float() / largest[:, 1:] * _ZERO_CODES).round_().clamp_(-_ZERO_CODES, _ZERO_CODES)
    return scale_codes.to(torch.uint8), zero_codes.to(torch.int8)


def decode_scales(scale_codes: Tensor, zero_codes: Tensor, tops: Tensor) -> tuple[Tensor, Tensor]:
    """What codes mean: scales and zeros, each float16 (out, groups)."""
    wide = tops.float()
    scales = (wide[:, :1] * scale_codes.float() / _SCALE_CODES).half()
    zeros = (wide[:, 1:] * zero_codes.float() / _ZERO_CODES).half()
    return scales, zeros


def nearest_coded(scales: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest scales and zeros that codes can mean, and the tops they are shares of."""
    tops = tops_of(scales, zeros)
    return *decode_scales(*encode_scales(scales, zeros, tops), tops), tops
