"""How the packed decoder lays out the heads of queries and keys; weights and adapters must agree on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from model.config import ModelConfig


def pair_order(head_dim: int) -> Tensor:
    """Where the elements of a head come from, so that those that turn together are neighbours."""
    return torch.arange(head_dim).view(2, -1).t().reshape(-1)


def reorder_heads(rows: Tensor, order: Tensor) -> Tensor:
    """The rows (heads * head_dim, ...) of a projection with every head in a new order."""
    return rows.view(-1, order.shape[0], *rows.shape[1:])[:, order].reshape(rows.shape)


def query_scale(config: ModelConfig) -> float:
    """1 / sqrt(head_dim), by which attention multiplies its scores."""
    return 1.0 / math.sqrt(config.head_dim)
