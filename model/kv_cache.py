"""Keys and values of the tokens already seen, in buffers that are allocated once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.errors import ContextLengthError

if TYPE_CHECKING:
    from model.config import ModelConfig


class KVCache:
    """Room for `max_length` tokens; one key and one value buffer for each layer that computes keys and values.

    Layers differ in kv heads, so each has buffers of its own; a layer that attends over another's has none.

    Attributes:
        length: Number of tokens held.
        max_length: Number of tokens there is room for.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 < max_length <= config.max_context:
            raise ContextLengthError(f"a cache of {max_length} tokens, the model's context holds {config.max_context}")
        self.length = 0
        self.max_length = max_length
        shapes = {n: (batch_size, config.kv_heads[n], max_length, config.head_dim) for n in config.kv_layers}
        self._keys = {n: torch.zeros(shape, dtype=dtype, device=device) for n, shape in shapes.items()}
        self._values = {n: torch.zeros(shape, dtype=dtype, device=device) for n, shape in shapes.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers, filled or not."""
        return sum(buffer.nbytes for buffers in (self._keys, self._values) for buffer in buffers.values())

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new tokens of one layer; returns that layer's keys and values of all tokens, without a copy.

        `length` stays until `advance`, so that every layer of one pass writes at the same place.

        Args:
            layer: Which layer; one of `ModelConfig.kv_layers`.
            keys: (B, kv_heads, T, head_dim), positions already turned in.
            values: (B, kv_heads, T, head_dim).

        Raises:
            ContextLengthError: The buffers are full.
        """
        end = self.length + keys.shape[2]
        if end > self.max_length:
            raise ContextLengthError(f"the cache has room for {self.max_length} tokens, {end} are needed")
        self._keys[layer][:, :, self.length : end] = keys
        self._values[layer][:, :, self.length : end] = values
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def advance(self, count: int) -> None:
        """Count the tokens that all layers have stored."""
        self.length += count
