"""What would be exported, as a model in memory: nothing rounded any more, and the adapter in the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from model.export.source import ExportSource
from model.tokenizer import Tokenizer
from model.transformer import LayeredTransformer

if TYPE_CHECKING:
    from pathlib import Path


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
            weight = opened.weight(name)
            values = np.concatenate([weight.rows(rows) for rows in weight.chunks()])
            owner, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(torch.from_numpy(values), requires_grad=False)
            setattr(model.get_submodule(owner), attribute, parameter)
        return model.eval(), Tokenizer.from_folder(opened.folder)
