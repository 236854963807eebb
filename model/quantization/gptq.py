"""GPTQ: round one column of a weight at a time and let those not rounded yet make up for its error.

Frantar et al. 2022, arXiv:2210.17323. The error counts where a text's activations X lie: with H = X^T X the output's
squared error is tr(E H E^T), and the best answer to rounding a column follows from the Cholesky factor of H^-1.
Columns go in the order of diag(H), the largest first, and the levels of every group are placed before the first column
is rounded (by `fit_groups`, weighted with diag(H)), so that the order and the groups do not get in each other's way.
Then all scales and zeros of a row are refitted together to the rounded values, by least squares with H, and one more
pass over the columns moves every value to the level that is best given all others (coordinate descent on the same
error, as in QuantEase, Behdin et al. 2023, arXiv:2309.01885), which also makes good what coded scales lost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from model.errors import QuantizationError
from model.quantization.refit import refit_groups
from model.quantization.scales import nearest_coded
from model.quantization.search import fit_groups
from model.quantization.weights import INT4_MIDDLE, INT8_LARGEST, QuantizedWeight, quantize_int8

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST: Final = 15
# Added to diag(H), as a share of its mean, until the factorisation succeeds.
_DAMPINGS: Final = (0.03, 0.3, 3.0)
# How much of H's mean diagonal pulls a number towards what it was, when values are moved once more.
_PULL: Final = 0.01
# Columns whose corrections are gathered before they reach the rest of the matrix in one product.
_COLUMNS: Final = 128


def gptq_int4(
    weight: Tensor, hessian: Tensor, group_size: int = 32, *, symmetric: bool = False, scale_bits: int = 16
) -> QuantizedWeight:
    """Quantise a matrix so that its outputs on a text change least.

    Args:
        weight: (out, in).
        hessian: X^T X of the text's inputs: (in, in), float32.
        group_size: Inputs that share a scale; divides `in`.
        symmetric: Levels lie around zero.
        scale_bits: Of each scale and zero, 16 or 8; 8 not with `symmetric`.

    Raises:
        QuantizationError: A value is not finite.
    """
    weight = _finite(weight, hessian)
    rows, columns = weight.shape
    importance = hessian.diagonal().view(1, columns // group_size, group_size)
    groups = weight.view(rows, columns // group_size, group_size)
    scales, zeros = fit_groups(groups, symmetric=symmetric, importance=importance)
    step, low = _levels(scales, zeros, group_size)
    values = _ordered(weight, step, low, hessian, range_=(0, _LARGEST)).to(torch.uint8)
    found = refit_groups(QuantizedWeight(values, scales, zeros, bits=4, group_size=group_size), weight, hessian)
    if scale_bits == 8 and found.zeros is not None:  # noqa: PLR2004  (coded)
        scales, zeros, tops = nearest_coded(found.scales, found.zeros)
        found = replace(found, scales=scales, zeros=zeros, tops=tops)
    step, low = _levels(found.scales, found.zeros, group_size)
    return replace(found, values=_descended(found.values, weight, step, low, hessian))


def gptq_int8(weight: Tensor, hessian: Tensor) -> QuantizedWeight:
    """Quantise a matrix to int8 so that its outputs on a text change least; scales as in `quantize_int8`.

    Args:
        weight: (out, in).
        hessian: X^T X of the text's inputs: (in, in), float32.

    Raises:
        QuantizationError: A value is not finite.
    """
    weight = _finite(weight, hessian)
    scales = quantize_int8(weight).scales
    step = scales[:, None].expand_as(weight)
    values = _ordered(weight, step, torch.zeros_like(weight), hessian, range_=(-INT8_LARGEST, INT8_LARGEST))
    return QuantizedWeight(values.to(torch.int8), scales, None, bits=8, group_size=None)


def _finite(weight: Tensor, hessian: Tensor) -> Tensor:
    weight = weight.detach().float()
    if not bool(torch.isfinite(weight).all()) or not bool(torch.isfinite(hessian).all()):
        raise QuantizationError("a weight or an activation is not finite; the base is damaged, import it again")
    return weight


def _ordered(weight: Tensor, step: Tensor, low: Tensor, hessian: Tensor, *, range_: tuple[int, int]) -> Tensor:
    """The whole numbers of a weight = number * step + low, each (out, in), found in the order of diag(H)."""
    order = torch.argsort(hessian.diagonal(), descending=True)
    factor = _inverse_factor(hessian[order][:, order])
    # One row of these is one column of the weight: what a step reads and writes is contiguous.
    values = _round_columns(weight[:, order].T.contiguous(), step[:, order].T, low[:, order].T, factor, range_)
    unordered = torch.empty_like(values)
    unordered[order] = values
    return unordered.T.contiguous()


def _round_columns(left: Tensor, step: Tensor, low: Tensor, factor: Tensor, range_: tuple[int, int]) -> Tensor:
    """Round row after row of (in, out) and correct the rows below it; `factor` is upper triangular (in, in)."""
    step, low = step.contiguous(), low.contiguous()
    count = len(left)
    values = torch.empty(left.shape, dtype=torch.int16)
    for begin in range(0, count, _COLUMNS):
        end = min(begin + _COLUMNS, count)
        errors = torch.empty(end - begin, left.shape[1])
        for index in range(begin, end):
            rounded = ((left[index] - low[index]) / step[index]).round_().clamp_(*range_)
            values[index] = rounded.to(torch.int16)
            error = (left[index] - rounded.mul_(step[index]).add_(low[index])) / factor[index, index]
            left[index + 1 : end].addr_(factor[index, index + 1 : end], error, alpha=-1)
            errors[index - begin] = error
        left[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return values


def _levels(scales: Tensor, zeros: Tensor | None, group_size: int) -> tuple[Tensor, Tensor]:
    """Step and lowest level of every number, each (out, in)."""
    step = scales.float().repeat_interleave(group_size, dim=1)
    return step, -INT4_MIDDLE * step if zeros is None else zeros.float().repeat_interleave(group_size, dim=1)


def _descended(values: Tensor, weight: Tensor, step: Tensor, low: Tensor, hessian: Tensor) -> Tensor:
    """The values (out, in) after each column in turn took the level that errs least, the others being as they are."""
    damped = hessian + torch.diag((hessian.diagonal().mean() * _PULL).clamp_min(1e-12).expand(len(hessian)))
    # Rows are columns of the weight, as in `_round_columns`.
    numbers, step, low = values.T.float(), step.T.contiguous(), low.T.contiguous()
    gradient = damped @ (numbers * step + low - weight.T)
    moved = numbers.contiguous()
    count, diagonal = len(moved), damped.diagonal()
    for begin in range(0, count, _COLUMNS):
        end = min(begin + _COLUMNS, count)
        changes = torch.zeros(end - begin, moved.shape[1])
        for index in range(begin, end):
            wanted = moved[index] - gradient[index] / (diagonal[index] * step[index])
            # Not a number only where float16 made a step zero, and then any value will do.
            rounded = wanted.nan_to_num_().round_().clamp_(0, _LARGEST)
            changes[index - begin] = (rounded - moved[index]) * step[index]
            moved[index] = rounded
            gradient[begin:end].addr_(damped[begin:end, index], changes[index - begin])
        gradient[end:].addmm_(damped[end:, begin:end], changes)
    return moved.T.contiguous().to(torch.uint8)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse."""
    hessian = hessian.double()
    mean = hessian.diagonal().mean().clamp_min(1e-12)
    for damping in _DAMPINGS:
        damped = hessian + torch.eye(len(hessian), dtype=torch.float64) * (mean * damping)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                factor: Tensor = upper.float()
                return factor
    raise QuantizationError("the activations of the calibration text cannot be factorised; take a longer text")
