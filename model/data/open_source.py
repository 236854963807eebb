"""Naming a source in a setting or on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from model.data.chitchat import ChitchatSource
from model.data.docstrings import DocstringSource
from model.data.jsonl import JsonlSource
from model.errors import DataError

if TYPE_CHECKING:
    from model.data.source import DataSource


def open_source(spec: str) -> DataSource:
    """The source that a specification names: `chitchat`, `docstrings`, or `jsonl:FOLDER`.

    Raises:
        DataError: Another word, or the folder does not exist.
    """
    if spec == "chitchat":
        return ChitchatSource()
    if spec == "docstrings":
        return DocstringSource()
    kind, separator, folder = spec.partition(":")
    if kind == "jsonl" and separator and folder:
        return JsonlSource(Path(folder).expanduser())
    raise DataError(f"unknown data source {spec!r}; write 'chitchat', 'docstrings' or 'jsonl:FOLDER'")
