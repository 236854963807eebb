"""Safetensors files as checked headers and bytes: what reading needs before any tensor library comes in.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from model.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy.typing as npt

_MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
_LENGTH_BYTES: Final = 8
_MAX_DIMENSIONS: Final = 8
_MAX_SHOWN: Final = 120  # characters of a foreign name
ITEM_BYTES: Final[Mapping[str, int]] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}


@dataclass(frozen=True)
class RawTensor:
    """Where one tensor lies in its file; `dtype` as the format writes it, `begin` and `end` from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class RawTensorFile:
    """An open safetensors file whose header was checked; a context manager.

    Attributes:
        entries: Every tensor by name.
    """

    def __init__(self, path: Path) -> None:
        """Open and check.

        Raises:
            CheckpointError: The file is missing, or no well-formed safetensors file of the dtypes of `ITEM_BYTES`.
        """
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        try:
            self.entries: Mapping[str, RawTensor] = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; nothing can be read any more."""
        self._file.close()

    def read_bytes(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of the tensor of that name, in memory of their own.

        Raises:
            CheckpointError: The file became shorter since it was opened.
        """
        entry = self.entries[name]
        return self._bytes(name, entry.begin, entry.end)

    def read_rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """The bytes of rows `begin` to `end` of the tensor of that name, in memory of their own.

        Raises:
            CheckpointError: The file became shorter since it was opened.
        """
        entry = self.entries[name]
        row_bytes = (entry.end - entry.begin) // max(1, entry.shape[0])
        return self._bytes(name, entry.begin + begin * row_bytes, entry.begin + end * row_bytes)

    def _bytes(self, name: str, begin: int, end: int) -> npt.NDArray[np.uint8]:
        raw = np.empty(end - begin, dtype=np.uint8)
        self._file.seek(begin)
        if self._file.readinto(raw.data) != len(raw):
            raise CheckpointError(f"{self.path} ended inside {name}; it changed while it was read")
        return raw

    def require_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the file holds exactly these tensors.

        Raises:
            CheckpointError: A tensor is missing, unexpected, or has another shape.
        """
        missing, unexpected = sorted(set(shapes) - set(self.entries)), sorted(set(self.entries) - set(shapes))
        if missing or unexpected:
            raise CheckpointError(
                f"{self.path} does not fit its config: missing {_some(missing)}, unexpected {_some(unexpected)}; "
                "fetch or import it again"
            )
        for name, shape in shapes.items():
            if self.entries[name].shape != shape:
                raise CheckpointError(
                    f"{self.path}: {name} has shape {list(self.entries[name].shape)}, its config says {list(shape)}; "
                    "take the weights and the config that belong together"
                )

    def _read_header(self) -> dict[str, RawTensor]:
        file_bytes = os.fstat(self._file.fileno()).st_size
        header_bytes = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
        data_begin = _LENGTH_BYTES + header_bytes
        if header_bytes > _MAX_HEADER_BYTES or data_begin > file_bytes:
            raise self._damaged(f"its header claims {header_bytes} bytes, the file has {file_bytes}")
        try:
            header = json.loads(self._file.read(header_bytes), object_pairs_hook=_without_repeats)
            entries = {n: _named_entry(n, entry, data_begin) for n, entry in header.items() if n != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(f"its header is malformed: {error}") from error
        end = data_begin
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            # Overlaps and holes are refused as the format demands: they could hide bytes or grow on reading.
            if entry.begin != end:
                how = "overlaps the tensor before it" if entry.begin < end else "leaves a hole before it"
                raise self._damaged(f"{_short(name)} begins at byte {entry.begin} and not at {end}: it {how}")
            end = entry.end
            if end > file_bytes:
                raise self._damaged(f"it has {file_bytes} bytes, {_short(name)} ends at byte {end}: it is cut short")
        if end != file_bytes:
            raise self._damaged(f"its tensors end at byte {end}, the file has {file_bytes}")
        return entries

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is no sound safetensors file: {reason}; fetch or import it again")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a JSON object that names a key twice: two readers could take different ones."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _named_entry(name: str, entry: Any, data_begin: int) -> RawTensor:  # noqa: ANN401  (parsed JSON)
    try:
        return _entry(entry, data_begin)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{_short(name)}: {error}") from error


def _entry(entry: Mapping[str, Any], data_begin: int) -> RawTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"a tensor has dtype, shape and data_offsets, not {_short(entry)}")
    item_bytes = ITEM_BYTES.get(entry["dtype"])
    if item_bytes is None:
        raise ValueError(f"dtype {_short(entry['dtype'])} is none of {', '.join(ITEM_BYTES)}")
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    # Bounded before they are multiplied: the product of a million numbers would take hours.
    if len(shape) > _MAX_DIMENSIONS or not all(_is_length(number) for number in (*shape, begin, end)):
        raise ValueError(f"shape {_short(shape)} or an offset is not of whole numbers from 0 to 2^63")
    if math.prod(shape) * item_bytes != end - begin:
        raise ValueError(f"shape {list(shape)} of {entry['dtype']} does not take {end - begin} bytes")
    return RawTensor(dtype=entry["dtype"], shape=shape, begin=data_begin + begin, end=data_begin + end)


def _is_length(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 63


def _short(value: object) -> str:
    """A foreign value in a sentence: a name or a number of a hostile file may be millions of characters long."""
    shown = str(value) if isinstance(value, str) else repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."


def _some(names: list[str]) -> str:
    """The first few of a possibly long list."""
    shown = ", ".join(names[:3]) or "nothing"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"  # noqa: PLR2004  (three are readable)
