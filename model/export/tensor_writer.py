"""A safetensors file written one tensor after the other, so that a large model never lies in memory. Without torch.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from model.files import replace_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}
_ALIGNMENT = 8


class Planned(NamedTuple):
    """A tensor that is yet to be written.

    Attributes:
        name: Its name in the file.
        dtype: As the format writes it.
        shape: Its shape.
        pieces: Gives its bytes, in order, when it is its turn.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[npt.NDArray[Any]]]


def write_planned(path: Path, planned: Sequence[Planned]) -> None:
    """Write the file atomically; the same tensors give the same bytes.

    Raises:
        CheckpointError: This disk does not take it.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in planned:
        begin, end = end, end + math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for tensor in planned:
                for piece in tensor.pieces():
                    piece.tofile(file)

    replace_durably(path, write)
