"""Tensors as a device sent them: exactly the bytes that were asked for, or a refusal.

NumPy's own reader evaluates the header as Python, so that hostile bytes end in a choice of a dozen exceptions. Here the
header is matched against the only text that an honest device writes.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from server.federation.refusals import RefusalKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.app import ArrayRecord

AdapterState = dict[str, npt.NDArray[np.float32]]

_MAGIC: Final = b"\x93NUMPY\x01\x00"
_LENGTH_AT, _HEADER_AT = len(_MAGIC), len(_MAGIC) + 2
_LONGEST_HEADER: Final = 1024
_HEADER: Final = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|=][a-z][0-9]{1,2})', 'fortran_order': (?P<fortran>False|True), "
    rb"'shape': \((?P<shape>[0-9, ]{0,200})\), \} *\n"
)


class TensorRefusedError(Exception):
    """A device's tensors are not those that were asked for."""

    def __init__(self, kind: RefusalKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def read_update(arrays: ArrayRecord, adapter: Mapping[str, npt.NDArray[np.float32]]) -> AdapterState:
    """Read an update that has the adapter's names and shapes; nothing larger is ever allocated.

    Raises:
        TensorRefusedError: It has other names, shapes or types, more bytes, or values that are not finite.
    """
    if set(arrays) != set(adapter):
        raise TensorRefusedError(
            RefusalKind.WRONG_NAMES,
            f"update has {len(arrays)} tensors, the adapter has {len(adapter)}, or names differ",
        )
    return {name: _read_named(name, arrays[name].data, like.shape) for name, like in adapter.items()}


def _read_named(name: str, raw: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    try:
        values = read_tensor(raw, shape)
    except TensorRefusedError as error:
        raise TensorRefusedError(error.kind, f"tensor {name} {error}") from None
    if not np.isfinite(values).all():
        raise TensorRefusedError(RefusalKind.NOT_FINITE, f"tensor {name} holds a value that is not finite")
    return values


def read_tensor(raw: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Read a float32 tensor of `shape` from the bytes of an npy 1.0 file; a copy.

    Raises:
        TensorRefusedError: The bytes are not exactly one such tensor.
    """
    expected = 4 * math.prod(shape)
    if len(raw) > expected + _LONGEST_HEADER:
        raise TensorRefusedError(RefusalKind.OVERSIZED, f"has {len(raw)} bytes, {expected} of values were asked for")
    if raw[:_LENGTH_AT] != _MAGIC:
        raise TensorRefusedError(RefusalKind.MALFORMED, "is not an npy 1.0 array")
    end = _HEADER_AT + int.from_bytes(raw[_LENGTH_AT:_HEADER_AT], "little")
    header = _HEADER.fullmatch(raw[_HEADER_AT:end])
    if header is None:
        raise TensorRefusedError(RefusalKind.MALFORMED, "has no readable npy header")
    declared = [int(part) for part in header["shape"].replace(b" ", b"").split(b",") if part]
    if header["dtype"] != b"<f4" or declared != list(shape):
        said = f"{header['dtype'].decode()}{declared}"
        raise TensorRefusedError(RefusalKind.WRONG_SHAPE, f"is {said[:100]}, expected <f4{list(shape)}")
    if len(raw) - end != expected:
        raise TensorRefusedError(RefusalKind.MALFORMED, f"has {len(raw) - end} bytes of values, {expected} are needed")
    values = np.frombuffer(raw, dtype="<f4", offset=end)
    # A copy: views would keep each device's whole message, and its other records, in memory.
    return values.reshape(shape, order="F" if header["fortran"] == b"True" else "C").astype(np.float32)
