"""The best scales and zeros for values that are already rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from model.quantization.weights import INT4_MIDDLE, QuantizedWeight, dequantize

if TYPE_CHECKING:
    from torch import Tensor

# A small pull of each number towards what it was, so that a group without spread stays where it is.
_RIDGE: Final = 1e-3
# Rows that are solved at once: their products stay in a core's cache.
_ROWS: Final = 32


def refit_groups(quantized: QuantizedWeight, weight: Tensor, hessian: Tensor) -> QuantizedWeight:
    """Move an int4 weight's scales and zeros so that tr(E H E^T) is least, the rounded values staying as they are.

    A row's error is linear in its scales and zeros: one small system of normal equations a row, of twice the number of
    groups. A row that float16 makes worse keeps what it had.

    Args:
        quantized: int4, of the weight.
        weight: (out, in), float32.
        hessian: (in, in), float32.
    """
    damped = hessian + torch.diag((hessian.diagonal() * 0.01).clamp_min(1e-12))
    parts = [
        _refit(_rows(quantized, slice(start, start + _ROWS)), weight[start : start + _ROWS], damped)
        for start in range(0, len(weight), _ROWS)
    ]
    scales = torch.cat([part.scales for part in parts])
    zeros = None if quantized.zeros is None else torch.cat([part.zeros for part in parts if part.zeros is not None])
    return replace(quantized, scales=scales, zeros=zeros)


def _refit(quantized: QuantizedWeight, weight: Tensor, hessian: Tensor) -> QuantizedWeight:
    rows, groups = quantized.scales.shape
    steps = quantized.values.float()
    if quantized.zeros is None:
        steps -= INT4_MIDDLE
    bases = [steps] if quantized.zeros is None else [steps, torch.ones_like(steps)]
    products = [_by_group(base, hessian, groups) for base in bases]
    # Entry (row, a, b) of a block is basis a of group i times H times basis b of group j.
    system = torch.cat([torch.cat([_inner(base, product) for product in products], -1) for base in bases], -2).double()
    error = (weight - dequantize(quantized)) @ hessian
    wanted = torch.cat([(error * base).view(rows, groups, -1).sum(-1) for base in bases], -1).double()
    ridge = system.diagonal(dim1=1, dim2=2) * _RIDGE + 1e-12
    change = torch.linalg.solve(system + torch.diag_embed(ridge), wanted).float()

    scales = (quantized.scales.float() + change[:, :groups]).half()
    zeros = None if quantized.zeros is None else (quantized.zeros.float() + change[:, groups:]).half()
    moved = replace(quantized, scales=scales, zeros=zeros)
    is_better = (_errors(moved, weight, hessian) < _errors(quantized, weight, hessian))[:, None]
    return replace(
        quantized,
        scales=torch.where(is_better, scales, quantized.scales),
        zeros=None if zeros is None or quantized.zeros is None else torch.where(is_better, zeros, quantized.zeros),
    )


def _by_group(base: Tensor, hessian: Tensor, groups: int) -> Tensor:
    """H times the part of each row's basis in each group: (rows, in) -> (groups, rows, in)."""
    rows, columns = base.shape
    return torch.bmm(base.view(rows, groups, -1).transpose(0, 1), hessian.view(groups, columns // groups, columns))


def _inner(base: Tensor, product: Tensor) -> Tensor:
    """Sum each group of base * product: (rows, in), (groups, rows, in) -> (rows, groups, groups)."""
    groups, rows, _ = product.shape
    by_group = (product * base).view(groups, rows, groups, -1).sum(-1)
    return by_group.permute(1, 2, 0)


def _errors(quantized: QuantizedWeight, weight: Tensor, hessian: Tensor) -> Tensor:
    """The error of each row, e H e^T: (rows,)."""
    error = dequantize(quantized) - weight
    return ((error @ hessian) * error).sum(-1)


def _rows(quantized: QuantizedWeight, chosen: slice) -> QuantizedWeight:
    zeros = None if quantized.zeros is None else quantized.zeros[chosen]
    return replace(quantized, values=quantized.values[chosen], scales=quantized.scales[chosen], zeros=zeros)
