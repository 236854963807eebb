"""What would be exported, as a model in memory or a checkpoint: nothing is rounded, the adapter is in the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from model.checkpoint import stream_checkpoint
from model.export.source import ExportSource
from model.tokenizer import Tokenizer
from model.transformer import LayeredTransformer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.export.weights import Floats, StoredWeight


def load_dense(source: Path) -> tuple[LayeredTransformer, Tokenizer]:
    """A checkpoint folder, or a version's tree with its adapter merged: float32, frozen, in evaluation mode.

    Raises:
        CheckpointError: The source is damaged.
        AdapterError: The adapter does not fit the base.
    """
    with ExportSource(source) as opened:
        with torch.device("meta"):
            model = LayeredTransformer(opened.config)
        for name in opened.config.parameter_shapes():
            values = np.concatenate(list(_rows(opened.weight(name))))
            owner, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(torch.from_numpy(values), requires_grad=False)
            setattr(model.get_submodule(owner), attribute, parameter)
        return model.eval(), Tokenizer.from_folder(opened.folder)


def write_dense(source: Path, folder: Path) -> None:
    """Write what `load_dense` would load as a checkpoint in float32, one weight as stored in memory at a time.

    Raises:
        CheckpointError: The source is damaged, or this disk does not take it.
        AdapterError: The adapter does not fit the base.
    """
    with ExportSource(source) as opened:
        stored = {name: (torch.float32, shape) for name, shape in opened.config.parameter_shapes().items()}
        pieces = ((name, torch.from_numpy(values)) for name in stored for values in _rows(opened.weight(name)))
        stream_checkpoint(folder, opened.config, stored, pieces, Tokenizer.from_folder(opened.folder))


def _rows(weight: StoredWeight) -> Iterator[Floats]:
    return (weight.rows(rows) for rows in weight.chunks())
