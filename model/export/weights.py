"""One parameter as it is stored, given out a few rows at a time as float32. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from model.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

_INT4_MIDDLE: Final = 8
_SCALE_CODES: Final = np.float32(255)
_ZERO_CODES: Final = np.float32(127)
# Numbers that are turned into float32 at once.
_CHUNK_NUMBERS: Final = 1 << 20


@dataclass(frozen=True)
class Branch:
    """The low-rank branch on one weight: scaling * b @ a."""

    a: Floats
    b: Floats
    scaling: float


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of a weight that is stored in few bits.

    Attributes:
        values: int8 (rows, in) of 8 bits; uint8 in 0..15 (rows, in) of 4 bits.
        scales: (rows,) of 8 bits; (rows, in / group_size) of 4 bits.
        zeros: Like `scales`: the weight that the value 0 stands for; None where the levels lie around zero.
        group_size: Inputs that share a scale; None for 8 bits.
    """

    values: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
    scales: Floats
    zeros: Floats | None
    group_size: int | None

    def floats(self) -> Floats:
        """What the rows stand for: float32 (rows, in)."""
        wide = self.values.astype(np.float32)
        if self.group_size is None:
            return wide * self.scales[:, None]
        grouped = wide.reshape(*self.scales.shape, self.group_size)
        if self.zeros is None:
            return ((grouped - _INT4_MIDDLE) * self.scales[..., None]).reshape(wide.shape)
        return (grouped * self.scales[..., None] + self.zeros[..., None]).reshape(wide.shape)


class StoredWeight:
    """One parameter in memory as it is stored, and the adapter that is merged into it on reading.

    Attributes:
        name: Its name in the checkpoint.
        shape: As the config demands.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], parts: Mapping[str, npt.NDArray[Any]], lora: Branch | None
    ) -> None:
        self.name = name
        self.shape = shape
        self._parts = parts
        self._lora = lora

    @property
    def is_quantized(self) -> bool:
        """Whether `quantized` works: stored in few bits, and nothing is merged into it."""
        return "values" in self._parts and self._lora is None

    def quantized(self, rows: slice | npt.NDArray[np.intp]) -> QuantizedRows:
        """Some rows in the bits they are stored in."""
        values: npt.NDArray[Any] = self._parts["values"][rows]
        scales = widened(self._parts["scales"][rows])
        if values.dtype == np.int8:
            return QuantizedRows(values, scales, None, None)
        unpacked = np.stack((values & 15, values >> 4), axis=-1).reshape(len(values), -1)
        zeros = widened(self._parts["zeros"][rows]) if "zeros" in self._parts else None
        if zeros is not None and "tops" in self._parts:
            # Codes of 8 bits; `model.quantization.scales` says what they mean, float16 rounding included.
            tops = widened(self._parts["tops"][rows])
            scales = widened((tops[:, :1] * scales / _SCALE_CODES).astype(np.float16))
            zeros = widened((tops[:, 1:] * zeros / _ZERO_CODES).astype(np.float16))
        return QuantizedRows(unpacked, scales, zeros, unpacked.shape[1] // scales.shape[1])

    def rows(self, rows: slice | npt.NDArray[np.intp]) -> Floats:
        """Some rows as float32, the adapter merged in.

        Raises:
            CheckpointError: A value is not finite.
        """
        is_whole = "values" in self._parts
        wide = self.quantized(rows).floats() if is_whole else widened(self._parts["weight"][rows])
        if self._lora is not None:
            wide = wide + (self._lora.b[rows] @ self._lora.a) * np.float32(self._lora.scaling)
        if not np.isfinite(wide).all():
            raise CheckpointError(f"{self.name} has values that are not finite; fetch or import the model again")
        return wide

    def chunks(self, order: npt.NDArray[np.intp] | None = None) -> Iterator[slice | npt.NDArray[np.intp]]:
        """Rows to ask for one after the other, in this order, so that little memory is taken at once."""
        count = self.shape[0]
        step = max(1, _CHUNK_NUMBERS * count // max(1, int(np.prod(self.shape))))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            yield rows if order is None else order[rows]


def as_array(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[Any]:
    """Bytes as numpy holds them; bfloat16, which numpy lacks, stays as its 16 bits in uint16."""
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1"}
    return raw.view(kinds[dtype])


def widened(values: npt.NDArray[Any]) -> Floats:
    """Floats of any width, and bfloat16's bits, as float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
