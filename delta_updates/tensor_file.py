"""Where the tensors of a safetensors file lie: a bounded reader of its header that looks at no values.

The layout is 8 bytes (length of the header, little-endian), a JSON header, then the values without gaps. We read it
ourselves because bfloat16 and 8-bit floats have no NumPy type and must pass through as bytes.

Source: https://github.com/huggingface/safetensors (section "Format").
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from delta_updates.errors import TensorFileError
from delta_updates.reading import RandomReader

MAX_HEADER_BYTES = 8 << 20
MAX_DIMENSIONS = 32
PREFIX_BYTES = 8

_BITS_OF = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's place in its file: `offset` counts bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A well-formed file: `values_offset` bytes of header, then `tensors` one after the other without gaps."""

    values_offset: int
    tensors: tuple[Tensor, ...]


def read_tensor_file(reader: RandomReader) -> TensorFile:
    """Return the layout of a safetensors file.

    Raises:
        TensorFileError: Header too long, not JSON, unknown dtype, a length that does not follow from dtype and shape,
            or values that overlap, leave gaps or do not end where the file ends.
    """
    if reader.length < PREFIX_BYTES:
        raise TensorFileError(f"{reader.length} bytes are too short for a safetensors file")
    header_length = int.from_bytes(reader.read_at(0, PREFIX_BYTES), "little")
    if header_length > min(MAX_HEADER_BYTES, reader.length - PREFIX_BYTES):
        raise TensorFileError(
            f"header of {header_length} bytes; the file has {reader.length}, {MAX_HEADER_BYTES} allowed"
        )
    header = _parse(reader.read_at(PREFIX_BYTES, header_length))
    values_offset = PREFIX_BYTES + header_length
    tensors = [_tensor(name, entry, values_offset) for name, entry in header.items() if name != "__metadata__"]
    # Empty tensors share an offset with their neighbour; the length keeps the order well defined.
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.length, tensor.name))
    _check_without_gaps(tensors, values_offset, reader.length)
    return TensorFile(values_offset, tuple(tensors))


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"header is not JSON: {error}") from error
    if not raw.startswith(b"{") or not isinstance(header, dict):
        raise TensorFileError("header is not a JSON object")
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        # Two readers could each take another of the two.
        raise ValueError("a name appears twice")
    return result


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _tensor(name: str, entry: object, values_offset: int) -> Tensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(f"tensor {name[:80]!r}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS_OF:
        raise TensorFileError(f"tensor {name[:80]!r}: unknown dtype")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise TensorFileError(f"tensor {name[:80]!r}: shape must be at most {MAX_DIMENSIONS} counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):  # noqa: PLR2004 - a pair
        raise TensorFileError(f"tensor {name[:80]!r}: data_offsets must be two counts")
    begin, end = offsets
    if begin > end or math.prod(shape) * _BITS_OF[dtype] != (end - begin) * 8:
        raise TensorFileError(f"tensor {name[:80]!r}: {dtype} x {shape} does not fit bytes {begin} to {end}")
    return Tensor(name, dtype, tuple(shape), values_offset + begin, end - begin)


def _check_without_gaps(tensors: list[Tensor], values_offset: int, file_length: int) -> None:
    for before, after in pairwise(tensors):
        if before.offset + before.length != after.offset:
            raise TensorFileError(f"tensors {before.name[:80]!r} and {after.name[:80]!r} overlap or leave a gap")
    first = tensors[0].offset if tensors else values_offset
    last = tensors[-1].offset + tensors[-1].length if tensors else values_offset
    if first != values_offset or last != file_length:
        raise TensorFileError(f"values cover bytes {first} to {last} of {values_offset} to {file_length}")
