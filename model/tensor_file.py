"""Safetensors files as torch tensors: bounds are checked before memory is taken; a file is written whole or not at all.

The library's own reader maps the file, whose pages then count as this process's memory and change under it when the
file is replaced. Reading tensor by tensor holds one tensor at a time instead, which is what a small device can afford.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import safetensors.torch
import torch

from model.files import replace_durably
from model.raw_tensor_file import RawTensorFile
from model.tensor_writer import Slot, in_library_order, write_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I8": torch.int8,
}
_KINDS: Final = {dtype: kind for kind, dtype in _DTYPES.items()}
_STEP_NUMBERS: Final = 1 << 20


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

    def rows(self, name: str, begin: int, end: int) -> Iterator[torch.Tensor]:
        """Rows `begin` to `end` of the tensor of that name, a few at a time.

        Raises:
            CheckpointError: The file became shorter since it was opened.
        """
        info = self.tensors[name]
        for first, last in row_steps(begin, end, info.shape):
            raw = torch.from_numpy(self.read_rows(name, first, last))
            yield raw.view(info.dtype).reshape(last - first, *info.shape[1:])


def torch_dtype(kind: str) -> torch.dtype:
    """The dtype that safetensors writes so, such as `F16`."""
    return _DTYPES[kind]


def row_steps(begin: int, end: int, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Rows `begin` to `end` of a tensor, as ranges of about a million numbers."""
    step = max(1, _STEP_NUMBERS // max(1, math.prod(shape[1:])))
    for first in range(begin, end, step):
        yield first, min(first + step, end)


def stream_tensors(
    path: Path,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    pieces: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Write a safetensors file atomically from pieces, with the bytes that `write_tensors` would give it.

    Args:
        path: The file.
        tensors: Dtype and shape of every tensor.
        pieces: Name and next rows of a tensor, in its dtype; of one tensor in order, of several in any.

    Raises:
        CheckpointError: This disk does not take it.
        ValueError: The pieces do not make up the tensors.
    """
    slots = [Slot(name, _KINDS[dtype], shape) for name, (dtype, shape) in tensors.items()]
    write_pieces(path, in_library_order(slots), ((name, _bytes_of(piece)) for name, piece in pieces))


def _bytes_of(piece: torch.Tensor) -> npt.NDArray[np.uint8]:
    flat: npt.NDArray[np.uint8] = piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same tensors give the same bytes.

    Raises:
        CheckpointError: This disk does not take it.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    replace_durably(path, lambda temporary: safetensors.torch.save_file(contiguous, temporary, dict(metadata)))
