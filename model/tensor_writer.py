"""A safetensors file written piece by piece, so that a large model never lies in memory. Without torch.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from model.files import replace_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt

_ITEM_BYTES: Final = {"F64": 8, "U32": 4, "F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}
# The library puts tensors in this order, and by name within it: then all lie at multiples of their item's size.
_RANKS: Final = {kind: rank for rank, kind in enumerate(_ITEM_BYTES)}
_ALIGNMENT: Final = 8


class Slot(NamedTuple):
    """A tensor's place in a file that is written.

    Attributes:
        name: Its name in the file.
        dtype: As the format writes it.
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class Planned(NamedTuple):
    """A tensor that is yet to be written: a `Slot`, and what gives its bytes, in order, when it is its turn."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[npt.NDArray[Any]]]


def write_planned(path: Path, planned: Sequence[Planned]) -> None:
    """Write tensors one after the other, atomically; the same tensors give the same bytes.

    Raises:
        CheckpointError: This disk does not take it.
    """
    slots = [Slot(tensor.name, tensor.dtype, tensor.shape) for tensor in planned]
    write_pieces(path, slots, ((tensor.name, piece) for tensor in planned for piece in tensor.pieces()))


def in_library_order(slots: Iterable[Slot]) -> list[Slot]:
    """Tensors as the safetensors library orders them: whoever writes the same ones gets the same bytes."""
    return sorted(slots, key=lambda slot: (_RANKS[slot.dtype], slot.name.encode()))


def write_pieces(path: Path, slots: Sequence[Slot], pieces: Iterable[tuple[str, npt.NDArray[Any]]]) -> None:
    """Write pieces of tensors as they come, atomically.

    Args:
        path: The file.
        slots: Every tensor, in the file's order.
        pieces: Name and next bytes of a tensor; of one tensor in order, of several in any.

    Raises:
        CheckpointError: This disk does not take it.
        ValueError: The pieces are not what the slots say.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for slot in slots:
        begin, end = end, end + math.prod(slot.shape) * _ITEM_BYTES[slot.dtype]
        header[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [begin, end]}
        places[slot.name] = begin, end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    raw = len(raw).to_bytes(8, "little") + raw

    def write(temporary: Path) -> None:
        written = {name: begin for name, (begin, _) in places.items()}
        with temporary.open("wb") as file:
            file.write(raw)
            for name, piece in pieces:
                if written[name] + piece.nbytes > places[name][1]:
                    raise ValueError(f"{name} has more bytes than its shape")
                file.seek(len(raw) + written[name])
                piece.tofile(file)
                written[name] += piece.nbytes
        if short := [name for name, (_, last) in places.items() if written[name] != last]:
            raise ValueError(f"{short[:3]} have fewer bytes than their shapes")

    replace_durably(path, write)
