"""Safetensors files: bounds are checked before memory is taken; after a power cut a file is old or new.

The library's own reader maps the file, whose pages then count as this process's memory and change under it when the
file is replaced. Reading tensor by tensor holds one tensor at a time instead, which is what a small device can afford.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

import safetensors
import safetensors.torch
import torch

from model.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

_MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
_LENGTH_BYTES: Final = 8
_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in its file; `begin` and `end` count bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """An open safetensors file whose header was checked; a context manager.

    Attributes:
        tensors: Every tensor by name.
    """

    def __init__(self, path: Path) -> None:
        """Open and check.

        Raises:
            CheckpointError: The file is missing, or no well-formed safetensors file of floating-point tensors.
        """
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        try:
            self.tensors: Mapping[str, TensorInfo] = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def require_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the file holds exactly these tensors.

        Raises:
            CheckpointError: A tensor is missing, unexpected, or has another shape.
        """
        missing, unexpected = sorted(set(shapes) - set(self.tensors)), sorted(set(self.tensors) - set(shapes))
        if missing or unexpected:
            raise CheckpointError(
                f"{self.path} does not fit its config: missing {_some(missing)}, unexpected {_some(unexpected)}; "
                "fetch or import it again"
            )
        for name, shape in shapes.items():
            if self.tensors[name].shape != shape:
                raise CheckpointError(
                    f"{self.path}: {name} has shape {list(self.tensors[name].shape)}, its config says {list(shape)}"
                )

    def read(self, name: str) -> torch.Tensor:
        """The tensor of that name, in memory of its own.

        Raises:
            CheckpointError: The file became shorter since it was opened.
        """
        info = self.tensors[name]
        raw = torch.empty(info.end - info.begin, dtype=torch.uint8)
        self._file.seek(info.begin)
        if self._file.readinto(raw.numpy().data) != len(raw):
            raise CheckpointError(f"{self.path} ended inside {name}; it changed while it was read")
        return raw.view(info.dtype).reshape(info.shape)

    def _read_header(self) -> dict[str, TensorInfo]:
        file_bytes = os.fstat(self._file.fileno()).st_size
        header_bytes = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
        data_begin = _LENGTH_BYTES + header_bytes
        if header_bytes > _MAX_HEADER_BYTES or data_begin > file_bytes:
            raise self._damaged(f"its header claims {header_bytes} bytes, the file has {file_bytes}")
        try:
            header = json.loads(self._file.read(header_bytes), object_pairs_hook=_without_repeats)
            tensors = {
                name: _tensor_info(entry, data_begin) for name, entry in header.items() if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(f"its header is malformed: {error}") from error
        end = data_begin
        for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            # Overlaps and holes are refused as the format demands: they could hide bytes or grow on reading.
            if info.begin != end:
                raise self._damaged(f"{name} does not begin where the tensor before it ends")
            end = info.end
        if end != file_bytes:
            raise self._damaged(f"its tensors end at byte {end}, the file has {file_bytes}")
        return tensors

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is no sound safetensors file: {reason}; fetch or import it again")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same tensors give the same bytes.

    Raises:
        CheckpointError: This disk does not take it.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    replace_durably(path, lambda temporary: safetensors.torch.save_file(contiguous, temporary, dict(metadata)))


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically.

    Raises:
        CheckpointError: This disk does not take it.
    """
    replace_durably(path, lambda temporary: cast("None", temporary.write_text(text, encoding="utf-8", newline="\n")))


def replace_durably(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, force it to the disk and put it in place of `path`.

    Raises:
        CheckpointError: This disk does not take it; `path` is as it was.
    """
    # A fixed name: what a crash leaves behind is overwritten by the next attempt instead of piling up.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {path}: {error}; free disk space or choose another folder") from error


def read_text(path: Path, *, max_bytes: int) -> str:
    """The text of a small UTF-8 file.

    Raises:
        CheckpointError: The file is missing, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > max_bytes:
        raise CheckpointError(f"{path} is larger than {max_bytes} bytes, which no sound file of its kind is")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a JSON object that names a key twice: two readers could take different ones."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _tensor_info(entry: Mapping[str, Any], data_begin: int) -> TensorInfo:
    if set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"a tensor entry has the keys {sorted(entry)}")
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"dtype {entry['dtype']!r} is none of {', '.join(_DTYPES)}")
    shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("a shape or an offset is not a whole number >= 0")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"shape {list(shape)} of {entry['dtype']} does not take {end - begin} bytes")
    return TensorInfo(dtype=dtype, shape=shape, begin=data_begin + begin, end=data_begin + end)


def _some(names: list[str]) -> str:
    """The first few of a possibly long list."""
    shown = ", ".join(names[:3]) or "nothing"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"  # noqa: PLR2004  (three are readable)
