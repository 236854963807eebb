"""Keys and values of one sequence: buffers that grow by doubling, in 32, 16 or 8 bits, whole or as a sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor

from model.errors import ContextLengthError

if TYPE_CHECKING:
    from model.config import ModelConfig

CacheDtype = Literal["float32", "bfloat16", "int8"]
_FIRST_ROOM: Final = 256
_LARGEST: Final = 127.0
_SMALLEST: Final = 1e-20
_BYTES: Final[dict[CacheDtype, int]] = {"float32": 4, "bfloat16": 2, "int8": 1}
_DTYPES: Final[dict[CacheDtype, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


class SequenceCache:
    """What one sequence has been through; keys and values of a layer lie in one buffer, keys first.

    With a window, attention sees the last `window` tokens only and older ones are forgotten, so that a sequence may
    grow beyond the model's context at a constant cost (Beltagy et al. 2020, arXiv:2004.05150).

    Attributes:
        tokens: Every token stored so far, also those a window has forgotten.
        start: Position of the first token that is still held.
        room: Tokens that the buffers hold before they grow or forget.
    """

    def __init__(self, config: ModelConfig, *, dtype: CacheDtype = "float32", window: int | None = None) -> None:
        if window is not None and window < 1:
            raise ValueError(f"window={window} must be at least 1")
        self.tokens: list[int] = []
        self.start = 0
        self.room = 0
        self.window = window
        self._config = config
        self._kind: CacheDtype = dtype
        self._data: dict[int, Tensor] = {}
        self._scales: dict[int, Tensor] = {}

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffers as they are now."""
        return self.room * bytes_per_token(self._config, self._kind)

    def reserve(self, count: int) -> None:
        """Make room for `count` more tokens.

        Raises:
            ContextLengthError: More than the model's context, and there is no window.
        """
        needed = self.length + count
        if self.window is None and needed > self._config.max_context:
            raise ContextLengthError(
                f"{needed} tokens, the model's context holds {self._config.max_context}; shorten the input"
            )
        held = self.length - self.start
        if held + count <= self.room:
            return
        if self.window is not None and held > self.window:
            self._forget(held - self.window)
            held = self.window
        if held + count > self.room:
            self._grow(held + count)

    def truncate(self, length: int) -> None:
        """Go back to the first `length` tokens; what a window has forgotten does not come back."""
        if not self.start <= length <= self.length or (self.start and length < self.length - 1):
            raise ValueError(f"cannot go back to {length} tokens, {self.start}..{self.length} are held")
        del self.tokens[length:]

    def copy(self, length: int) -> SequenceCache:
        """A cache of its own with the first `length` tokens; only for one without a window."""
        twin = SequenceCache(self._config, dtype=self._kind)
        twin.reserve(length)
        for mine, theirs in ((self._data, twin._data), (self._scales, twin._scales)):
            for layer, buffer in mine.items():
                theirs[layer][:, :length] = buffer[:, :length]
        twin.tokens = self.tokens[:length]
        return twin

    def write(self, layer: int, keys_values: Tensor, at: int) -> None:
        """Store a layer's new tokens from position `at` on: (2 * kv_heads, T, head_dim), keys first, turned."""
        begin = at - self.start
        end = begin + keys_values.shape[1]
        if self._kind == "int8":
            largest = torch.linalg.vector_norm(keys_values, float("inf"), dim=-1, keepdim=True).clamp_(min=_SMALLEST)
            self._scales[layer][:, begin:end] = largest / _LARGEST
            self._data[layer][:, begin:end] = (keys_values * (_LARGEST / largest)).round_()
        else:
            self._data[layer][:, begin:end] = keys_values

    def read(self, layer: int, end: int, count: int) -> tuple[Tensor, Tensor, int]:
        """Keys and values that `count` new tokens before position `end` may see, and the position of the first.

        Returns:
            (kv_heads, tokens, head_dim) each, float32 or as stored in bfloat16.
        """
        first = self.start if self.window is None else max(self.start, end - count - self.window + 1)
        held = slice(first - self.start, end - self.start)
        data = self._data[layer][:, held]
        if self._kind == "int8":
            data = data * self._scales[layer][:, held]
        half = data.shape[0] // 2
        return data[:half], data[half:], first

    def _grow(self, needed: int) -> None:
        room = max(_FIRST_ROOM, self.room)
        while room < needed:
            room *= 2
        if self.window is None:
            room = min(room, self._config.max_context)
        held = self.length - self.start
        for layer in self._config.kv_layers:
            heads, width = 2 * self._config.kv_heads[layer], self._config.head_dim
            self._data[layer] = _larger(self._data.get(layer), (heads, room, width), held, _DTYPES[self._kind])
            if self._kind == "int8":
                self._scales[layer] = _larger(self._scales.get(layer), (heads, room, 1), held, torch.float32)
        self.room = room

    def _forget(self, count: int) -> None:
        held = self.length - self.start
        for buffers in (self._data, self._scales):
            for buffer in buffers.values():
                buffer[:, : held - count] = buffer[:, count:held].clone()
        self.start += count


def bytes_per_token(config: ModelConfig, dtype: CacheDtype) -> int:
    """Bytes that a cache takes for each token it has room for."""
    heads = sum(2 * config.kv_heads[layer] for layer in config.kv_layers)
    return heads * (config.head_dim * _BYTES[dtype] + (4 if dtype == "int8" else 0))


def _larger(old: Tensor | None, shape: tuple[int, int, int], held: int, dtype: torch.dtype) -> Tensor:
    new = torch.empty(shape, dtype=dtype)
    if old is not None:
        new[:, :held] = old[:, :held]
    return new
