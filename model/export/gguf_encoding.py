"""Float32 rows into the bytes of GGUF's tensor types.

The block formats are those of ggml: 32 numbers share a float16 scale
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from model.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from model.export.weights import Floats, QuantizedRows

    Bytes = npt.NDArray[np.uint8]

BLOCK: Final = 32
# Name of a type: bytes that a block of 32 numbers takes.
BLOCK_BYTES: Final = {"F32": 128, "F16": 64, "BF16": 64, "Q8_0": 34, "Q4_0": 18, "Q4_1": 20}


def encode(values: Floats, kind: str, *, name: str) -> Bytes:
    """Rows (rows, columns), or a vector, as the bytes of a type: (rows, bytes of a row).

    Raises:
        ExportError: A value is too large for float16.
    """
    rows = values.reshape(-1, values.shape[-1])
    encoded = _ENCODERS[kind](rows)
    if kind == "F16" and not np.isfinite(encoded.view(np.float16)).all():
        raise ExportError(f"{name} has values beyond float16's range; export it as bf16")
    return encoded.reshape(len(rows), -1)


def repack(rows: QuantizedRows, kind: str) -> Bytes | None:
    """Rows that are stored in few bits as the same numbers of a block type; None where it has no such numbers.

    The scales of int8 are float32 here and float16 in a block: that rounding is all that changes.
    """
    if kind == "Q8_0" and rows.group_size is None and rows.values.shape[1] % BLOCK == 0:
        whole = np.repeat(rows.scales[:, None], rows.values.shape[1] // BLOCK, axis=1)
        return _blocks(whole.astype("<f2"), rows.values.view(np.uint8))
    if rows.group_size is None or rows.group_size % BLOCK or (rows.zeros is None) != (kind == "Q4_0"):
        return None
    repeats = rows.group_size // BLOCK
    scales = np.repeat(rows.scales, repeats, axis=1).astype("<f2")
    nibbles = _nibbles(rows.values.view(np.uint8))
    if rows.zeros is None:
        return _blocks(scales, nibbles)
    zeros = np.repeat(rows.zeros, repeats, axis=1).astype("<f2")
    return _blocks(np.stack((scales, zeros), axis=-1), nibbles) if kind == "Q4_1" else None


def _f32(rows: Floats) -> Bytes:
    return np.ascontiguousarray(rows, dtype="<f4").view(np.uint8)


def _f16(rows: Floats) -> Bytes:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(rows.astype("<f2")).view(np.uint8)


def bfloat16_bits(rows: Floats) -> npt.NDArray[np.uint16]:
    """Round finite numbers to the nearest bfloat16, ties to even; its 16 bits."""
    bits = np.ascontiguousarray(rows, dtype="<f4").view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype("<u2")


def _bf16(rows: Floats) -> Bytes:
    return bfloat16_bits(rows).view(np.uint8)


def _q8_0(rows: Floats) -> Bytes:
    blocks = rows.reshape(len(rows), -1, BLOCK)
    scales = (np.abs(blocks).max(axis=-1) / 127).astype("<f2")
    # Divided by the scale as it is stored: its own rounding is made good as far as it can be.
    steps = np.rint(blocks * _inverse(scales)[..., None])
    return _blocks(scales, np.clip(steps, -127, 127).astype(np.int8).reshape(rows.shape).view(np.uint8))


def _q4_0(rows: Floats) -> Bytes:
    blocks = rows.reshape(len(rows), -1, BLOCK)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    # Sixteen levels, eight on the side of the largest number: it is met exactly.
    scales = (extreme / -8).astype("<f2")
    steps = np.rint(blocks * _inverse(scales)[..., None]) + 8
    return _blocks(scales, _nibbles(np.clip(steps, 0, 15).astype(np.uint8).reshape(rows.shape)))


def _q4_1(rows: Floats) -> Bytes:
    blocks = rows.reshape(len(rows), -1, BLOCK)
    low = blocks.min(axis=-1).astype("<f2")
    scales = ((blocks.max(axis=-1) - low) / 15).astype("<f2")
    steps = np.rint((blocks - low[..., None].astype(np.float32)) * _inverse(scales)[..., None])
    nibbles = _nibbles(np.clip(steps, 0, 15).astype(np.uint8).reshape(rows.shape))
    return _blocks(np.stack((scales, low), axis=-1), nibbles)


def _inverse(scales: npt.NDArray[np.float16]) -> Floats:
    wide = scales.astype(np.float32)
    return np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)


def _nibbles(values: Bytes) -> Bytes:
    """Two values a byte: within a block of 32 the first half is low, the second half high."""
    halves = values.reshape(len(values), -1, 2, BLOCK // 2)
    packed: npt.NDArray[np.uint8] = np.bitwise_or(halves[:, :, 0], np.left_shift(halves[:, :, 1], 4))
    return packed.reshape(len(values), -1)


def _blocks(heads: npt.NDArray[np.float16], values: Bytes) -> Bytes:
    """Each block's float16 numbers (rows, blocks, ...) in front of its values: (rows, bytes)."""
    rows, count = heads.shape[:2]
    head_bytes = np.ascontiguousarray(heads).view(np.uint8).reshape(rows, count, -1)
    return np.concatenate((head_bytes, values.reshape(rows, count, -1)), axis=-1).reshape(rows, -1)


_ENCODERS: Final[dict[str, Callable[[Floats], Bytes]]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
}
