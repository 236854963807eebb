"""Safetensors files as torch tensors: bounds are checked before memory is taken; a file is written whole or not at all.

The library's own reader maps the file, whose pages then count as this process's memory and change under it when the
file is replaced. Reading tensor by tensor holds one tensor at a time instead, which is what a small device can afford.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import safetensors.torch
import torch

from model.files import replace_durably
from model.raw_tensor_file import RawTensorFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I8": torch.int8,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in its file; `begin` and `end` count bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile(RawTensorFile):
    """An open safetensors file whose header was checked; a context manager.

    Attributes:
        tensors: Every tensor by name.
    """

    def __init__(self, path: Path) -> None:
        """Open and check.

        Raises:
            CheckpointError: The file is missing, or no well-formed safetensors file.
        """
        super().__init__(path)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(dtype=_DTYPES[raw.dtype], shape=raw.shape, begin=raw.begin, end=raw.end)
            for name, raw in self.entries.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name, in memory of its own.

        Raises:
            CheckpointError: The file became shorter since it was opened.
        """
        info = self.tensors[name]
        if info.begin == info.end:
            return torch.empty(info.shape, dtype=info.dtype)
        return torch.from_numpy(self.read_bytes(name)).view(info.dtype).reshape(info.shape)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same tensors give the same bytes.

    Raises:
        CheckpointError: This disk does not take it.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    replace_durably(path, lambda temporary: safetensors.torch.save_file(contiguous, temporary, dict(metadata)))
