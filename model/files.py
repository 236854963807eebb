"""Small text files and durable replacement: after a power cut a file is old or new. Without torch."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import safetensors

from model.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
        raise CheckpointError(f"cannot write {path}: {error}; free disk space or choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
