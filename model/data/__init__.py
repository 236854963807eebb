"""Whose text is trained on, and how it becomes batches."""

from model.data.chitchat import ChitchatSource
from model.data.docstrings import DocstringSource
from model.data.encoding import IGNORED, EncodedExample, collate, encode_examples
from model.data.filters import is_clean
from model.data.jsonl import JsonlSource, export_users
from model.data.open_source import open_source
from model.data.source import DataSource, Example, held_out_by_user, held_out_examples, split_by_time, training_part

__all__ = [
    "IGNORED",
    "ChitchatSource",
    "DataSource",
    "DocstringSource",
    "EncodedExample",
    "Example",
    "JsonlSource",
    "collate",
    "encode_examples",
    "export_users",
    "held_out_by_user",
    "held_out_examples",
    "is_clean",
    "open_source",
    "split_by_time",
    "training_part",
]
