"""Which tensors a foreign format has, and which of ours each is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from model.config import ModelConfig
    from model.export.source import ExportSource
    from model.export.weights import StoredWeight


@dataclass(frozen=True)
class ForeignTensor:
    """A tensor of a foreign format.

    Attributes:
        name: Its name there.
        parts: Our parameters, below each other.
        interleaved: Parts whose rows llama.cpp wants with the two elements of a rotary pair beside each other.
    """

    name: str
    parts: tuple[str, ...]
    interleaved: bool = False

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Shape of the whole."""
        shapes = [config.parameter_shapes()[part] for part in self.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def part_rows(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int, int]]:
        """Each part, and the range of its rows in the whole."""
        begin = 0
        for part in self.parts:
            end = begin + shapes[part][0]
            yield part, begin, end
            begin = end

    def pieces(self, source: ExportSource) -> Iterator[tuple[StoredWeight, Any]]:
        """Weight and rows of it, one piece after the other; one part is in memory at a time."""
        for part in self.parts:
            weight = source.weight(part)
            order = interleaved_rows(weight.shape[0], source.config.head_dim) if self.interleaved else None
            for rows in weight.chunks(order):
                yield weight, rows

    def chunks(self, source: ExportSource) -> Iterator[npt.NDArray[np.float32]]:
        """The whole as float32, a few rows at a time."""
        for weight, rows in self.pieces(source):
            yield weight.rows(rows)


def interleaved_rows(rows: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Which of our rows stand where in llama.cpp's order: pairs (i, i + head_dim / 2) beside each other."""
    return np.arange(rows, dtype=np.intp).reshape(-1, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


def is_uniform(config: ModelConfig) -> bool:
    """Whether all layers have the same shape."""
    return all(len(set(values)) == 1 for values in (config.query_heads, config.kv_heads, config.ffn_dims))


def require_own_keys_and_values(config: ModelConfig, *, form: str) -> None:
    """Refuse layers that attend over another layer's keys and values, which `form` cannot say.

    Raises:
        ExportError: There are some.
    """
    borrowed = [layer for layer in range(config.num_layers) if config.kv_layer(layer) != layer]
    if borrowed:
        raise ExportError(
            f"layers {borrowed[:4]} attend over keys and values of earlier layers (kv_of), which {form} cannot "
            "express and no copy of weights can stand for, since each layer has an input of its own; run this model "
            "with the torch back end, export a uniform one with --share-kv of one length as mlx, or train it without"
        )
