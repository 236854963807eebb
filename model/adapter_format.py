"""Low-rank factors in few bits: int8 or int4 numbers and a scale for each rank component. Without torch.

A quantised adapter *is* the version: what is stored, hashed, judged, shipped and run are its whole numbers and scales.
Everyone who computes with it takes the floats of `QuantizedFactor.floats`: one multiplication in float32, which IEEE
754 rounds in one way, so the same bits on every machine.

Rounding is to the nearest level. What it leaves behind is at most half a scale and belongs to whoever releases: added
to the next release (error feedback; Seide et al. 2014, "1-bit stochastic gradient descent"), it does not add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from model.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Codes = npt.NDArray[np.int8]

AdapterFormat = Literal["float16", "int8", "int4"]
ADAPTER_FORMATS: Final[tuple[AdapterFormat, ...]] = get_args(AdapterFormat)
"""In what an adapter may be released; `float16` is PEFT's own layout."""

QuantizedFormat = Literal["int8", "int4"]
BITS: Final[Mapping[str, int]] = {"int8": 8, "int4": 4}

# The level that a new scale gives the largest number. There is room above it: while numbers grow into it the scale is
# kept, and what did not move has not changed.
_FIRST_LEVEL: Final[Mapping[int, int]] = {8: 102, 4: 6}
# A scale is kept until the largest code has fallen to this share of the levels: a bit is lost by then.
_LEAST_SHARE: Final = 0.5
_MIDDLE_OF_4: Final = 8
_FLOAT32: Final = np.finfo(np.float32)
# Products with any code are normal numbers: no machine that treats tiny ones as zero sees another value.
_SMALLEST_SCALE: Final = float(_FLOAT32.tiny)
_LARGEST_SCALE: Final = float(_FLOAT32.max) / 256
_DTYPE_OF_VALUES: Final[Mapping[int, str]] = {8: "I8", 4: "U8"}
_REMEDY: Final = "take the adapter again from where it was released"


@dataclass(frozen=True)
class QuantizedFactor:
    """One factor of a low-rank branch, by rank component: row r of A, or column r of B.

    Attributes:
        codes: int8 (rank, length); length is A's inputs or B's outputs.
        scales: float32 (rank,), positive.
        bits: 8 or 4; codes lie in -2^(bits - 1) .. 2^(bits - 1) - 1.
    """

    codes: Codes
    scales: Floats
    bits: int

    def floats(self) -> Floats:
        """What the codes stand for, float32 (rank, length): each one times its scale, rounded once."""
        floats: Floats = self.codes.astype(np.float32) * self.scales[:, None]
        return floats

    def stored(self) -> dict[str, npt.NDArray[Any]]:
        """`values` and `scales` as they lie in a file: int8, or uint8 (rank, length / 2) with two int4 in a byte.

        An int4 is stored as the code plus 8, the even position in the low half.
        """
        if self.bits == BITS["int8"]:
            return {"values": self.codes, "scales": self.scales}
        nibbles = (self.codes + np.int8(_MIDDLE_OF_4)).astype(np.uint8)
        return {"values": nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4), "scales": self.scales}


def quantize_factor(
    values: npt.NDArray[np.floating[Any]], *, bits: int, kept: Floats | None = None, name: str = "the factor"
) -> QuantizedFactor:
    """Round a factor to the nearest levels; no value moves by more than half of its scale.

    Args:
        values: (rank, length), finite.
        bits: 8 or 4.
        kept: (rank,) scales of the release before. Each stays while it fits, so that codes change only where values
            moved; quantising what a factor stands for with its own scales gives the same factor.
        name: What an error calls it.

    Raises:
        AdapterError: A value is not finite or too large, or two int4 do not fill every byte.
    """
    if not np.isfinite(values).all():
        raise AdapterError(f"{name} has values that are not finite; the adapter is not written")
    if bits == BITS["int4"] and values.shape[1] % 2:
        raise AdapterError(f"{name} has {values.shape[1]} numbers a rank, int4 needs pairs; choose int8 for this model")
    wide = values.astype(np.float64)
    scales = _new_scales(wide, bits, name)
    if kept is not None and kept.shape == scales.shape:
        scales = np.where(_fits(wide, kept, bits), kept, scales)
    low, high = _levels(bits)
    codes = np.rint(wide / scales[:, None].astype(np.float64)).clip(low, high).astype(np.int8)
    return QuantizedFactor(codes, scales, bits)


def stored_factor(
    name: str, parts: Mapping[str, tuple[str, tuple[int, ...], npt.NDArray[np.uint8]]], *, rank: int, bits: int
) -> QuantizedFactor:
    """The factor that a file's tensors `values` and `scales` hold.

    Args:
        name: What an error calls it.
        parts: dtype as safetensors writes it, shape and bytes of each part.
        rank: Of the adapter.
        bits: 8 or 4.

    Raises:
        AdapterError: A part is missing or superfluous, has another dtype or shape, or a scale is no positive number.
    """
    if set(parts) != {"values", "scales"}:
        raise AdapterError(f"{name} is stored as {sorted(parts)}, int{bits} needs values and scales; {_REMEDY}")
    wanted = {"values": (_DTYPE_OF_VALUES[bits], (rank, *parts["values"][1][1:2])), "scales": ("F32", (rank,))}
    for part, (dtype, shape) in wanted.items():
        found = parts[part][:2]
        if found != (dtype, shape) or len(shape) != (2 if part == "values" else 1):
            raise AdapterError(
                f"{name}.{part} is {found[0]} of shape {list(found[1])}, an int{bits} adapter of rank {rank} has "
                f"{dtype} with {rank} rows; {_REMEDY}"
            )
    scales = parts["scales"][2].view("<f4").astype(np.float32)
    # Written so that NaN, of which every comparison is false, is refused too.
    if not ((scales >= _SMALLEST_SCALE) & (scales <= _LARGEST_SCALE)).all():
        raise AdapterError(f"{name}.scales has a scale that is not finite, zero or negative; {_REMEDY}")
    raw = parts["values"][2].reshape(parts["values"][1])
    if bits == BITS["int8"]:
        return QuantizedFactor(raw.view(np.int8), scales, bits)
    nibbles = np.stack((raw & 15, raw >> 4), axis=-1).reshape(rank, -1)
    return QuantizedFactor(nibbles.astype(np.int8) - np.int8(_MIDDLE_OF_4), scales, bits)


def _levels(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _new_scales(wide: npt.NDArray[np.float64], bits: int, name: str) -> Floats:
    largest = np.abs(wide).max(axis=1, initial=0.0)
    needed = largest / _FIRST_LEVEL[bits]
    if float(needed.max(initial=0.0)) > _LARGEST_SCALE:
        raise AdapterError(f"{name} has values up to {largest.max():.3g}, too large for int{bits}; train it anew")
    # A component that is all zeros has any scale.
    scales: Floats = np.where(needed > 0, np.maximum(needed, _SMALLEST_SCALE), 1.0).astype(np.float32)
    return scales


def _fits(wide: npt.NDArray[np.float64], kept: Floats, bits: int) -> npt.NDArray[np.bool_]:
    """Where a scale needs no change: every code has a level, and the levels are not far too many.

    Told by the codes, so that what was quantised with these scales keeps them.
    """
    low, high = _levels(bits)
    codes = np.rint(wide / kept[:, None].astype(np.float64))
    top, bottom = codes.max(axis=1, initial=0.0), codes.min(axis=1, initial=0.0)
    is_zero = ~wide.any(axis=1)
    is_used = is_zero | (np.maximum(top, -bottom) > _LEAST_SHARE * high)
    fits: npt.NDArray[np.bool_] = (top <= high) & (bottom >= low) & is_used
    return fits
