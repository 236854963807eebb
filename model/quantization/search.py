"""Where the 16 levels of a group lie: a search over clipping, each candidate refitted by least squares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST: Final = 15
_MIDDLE: Final = 8
# Fractions of the range between a group's extremes that the first guess of the levels spans.
_SPANS: Final = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
_SMALL_SCALE: Final = 2.0**-14
# Groups that are worked on at once: their floats stay in a core's cache.
_CHUNK_NUMBERS: Final = 1 << 18


def fit_groups(
    groups: Tensor, *, symmetric: bool = False, importance: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero of each group that give the least squared error after rounding.

    For each candidate span the values are rounded, the line through (value, weight) is refitted by least squares, and
    the error counts after rounding again to the refitted, stored (float16) numbers.

    Args:
        groups: (out, groups, group_size), float32.
        symmetric: Levels -8..7 times the scale, which may be negative; no zeros.
        importance: Weights of the squared error, broadcast to `groups`; None: all alike.

    Returns:
        Scales and zeros, each (out, groups), float16; zeros are None if symmetric.
    """
    rows = max(1, _CHUNK_NUMBERS // (groups.shape[1] * groups.shape[2]))
    weights = None if importance is None else importance.clamp_min(1e-12)
    parts = []
    for start in range(0, groups.shape[0], rows):
        chunk = groups[start : start + rows]
        share = None if weights is None else weights[start : start + rows] if len(weights) > 1 else weights
        parts.append(_fit_symmetric(chunk, share) if symmetric else _fit_asymmetric(chunk, share))
    scales = torch.cat([scale for scale, _ in parts])
    return scales, None if symmetric else torch.cat([zero for _, zero in parts])


def round_to_groups(groups: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """The nearest level of each weight: (out, groups, group_size) -> uint8 in 0..15 of the same shape."""
    scale = scales.float().unsqueeze(-1)
    offset = -_MIDDLE * scale if zeros is None else zeros.float().unsqueeze(-1)
    return (groups - offset).div_(scale).round_().clamp_(0, _LARGEST).to(torch.uint8)


def _fit_asymmetric(groups: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    low, high = groups.amin(-1), groups.amax(-1)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for span in _SPANS:
        scale = _storable((high - low) * (span / _LARGEST))
        zero = low + (high - low) * ((1 - span) / 2)
        best = _better(groups, importance, best, scale, zero.half())
        best = _better(groups, importance, best, *_refit_line(groups, importance, scale, zero.half()))
    if best is None:
        raise AssertionError
    return best[0], best[1]


def _fit_symmetric(groups: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    index = groups.abs().argmax(-1, keepdim=True)
    extreme = groups.gather(-1, index).squeeze(-1)
    no_zeros = torch.zeros_like(extreme, dtype=torch.float16)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for span in _SPANS:
        # There are eight levels on one side and seven on the other: the larger side gets the eight.
        scale = _storable(extreme * (-span / _MIDDLE))
        best = _better(groups, importance, best, scale, None)
        steps = round_to_groups(groups, scale, None).float().sub_(_MIDDLE)
        weighted = steps if importance is None else steps * importance
        refitted = (weighted * groups).sum(-1) / (weighted * steps).sum(-1).clamp_min(1e-12)
        best = _better(groups, importance, best, _storable(refitted), None)
    if best is None:
        raise AssertionError
    return best[0], no_zeros


def _refit_line(groups: Tensor, importance: Tensor | None, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted least squares of weight = scale * value + zero, the values as rounded."""
    values = round_to_groups(groups, scale, zero).float()
    weights = torch.ones_like(values[:1, :1]) if importance is None else importance
    total = weights.expand_as(values).sum(-1)
    mean_value, mean_weight = (weights * values).sum(-1) / total, (weights * groups).sum(-1) / total
    centred = values - mean_value.unsqueeze(-1)
    variance = (weights * centred.square()).sum(-1)
    slope = (weights * centred * groups).sum(-1) / variance.clamp_min(1e-12)
    refitted = _storable(torch.where(variance > 0, slope, scale.float()))
    return refitted, (mean_weight - refitted.float() * mean_value).half()


def _better(
    groups: Tensor,
    importance: Tensor | None,
    best: tuple[Tensor, Tensor, Tensor] | None,
    scale: Tensor,
    zero: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep, group by group, what errs less."""
    values = round_to_groups(groups, scale, zero).float()
    offset = -_MIDDLE * scale.float() if zero is None else zero.float()
    error = values.mul_(scale.float().unsqueeze(-1)).add_(offset.unsqueeze(-1)).sub_(groups).square_()
    if importance is not None:
        error = error * importance
    total = error.sum(-1)
    stored = torch.zeros_like(scale) if zero is None else zero
    if best is None:
        return scale, stored, total
    is_better = total < best[2]
    return (
        torch.where(is_better, scale, best[0]),
        torch.where(is_better, stored, best[1]),
        torch.where(is_better, total, best[2]),
    )


def _storable(scale: Tensor) -> Tensor:
    """As float16, in which a scale must not be zero: a group without spread has one level only, any scale will do.

    A small one, since a row's largest scale is what scales of 8 bits are shares of.
    """
    half = scale.half()
    return torch.where(half == 0, torch.full_like(half, _SMALL_SCALE), half)
