"""A model that stays on the disk: each matrix is read when it is used and given back at once.

Slow for more than a single pass, and enough for one: what is signed with a base is computed so.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.checkpoint import LoadedModel, load_version, read_config, read_plan, require_stored
from model.errors import CheckpointError
from model.tensor_file import TensorFile
from model.tokenizer import Tokenizer
from model.transformer import LayeredTransformer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _StoredMatrix(nn.Module):
    """A linear layer, or an embedding with its output, whose weight is on the disk."""

    def __init__(self, file: TensorFile, name: str) -> None:
        super().__init__()
        self._file = file
        self._name = name

    def linear(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return nn.functional.linear(x, self._file.read(self._name).float())


class _StoredLinear(_StoredMatrix):
    def forward(self, x: Tensor) -> Tensor:
        """As `linear`."""
        return self.linear(x)


class _StoredEmbedding(_StoredMatrix):
    def forward(self, token_ids: Tensor) -> Tensor:
        """(...) int64 -> (..., model_dim)."""
        rows = [next(self._file.rows(self._name, number, number + 1)) for number in token_ids.flatten().tolist()]
        return torch.cat(rows).float().reshape(*token_ids.shape, -1)


@contextmanager
def stored_version(tree: Path) -> Iterator[LoadedModel]:
    """A version's tree for a pass or two in float32; at most one matrix lies in memory.

    A version with an adapter or with quantised weights is loaded as ever.

    Raises:
        CheckpointError: The base is missing or damaged.
        AdapterError: The adapter is damaged or does not fit the base.
    """
    base = tree / "base"
    config, plan = read_config(base), read_plan(base)
    if plan.tensors or (tree / "adapter").is_dir():
        yield load_version(tree)
        return
    tokenizer = Tokenizer.from_folder(base)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(f"{base}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
    with TensorFile(base / "model.safetensors") as file:
        require_stored(file, config, plan)
        with torch.device("meta"):
            model = LayeredTransformer(config)
        for name, shape in config.parameter_shapes().items():
            path = name.removesuffix(".weight")
            owner, _, attribute = path.rpartition(".")
            if len(shape) == 1:
                model.get_submodule(path).weight = nn.Parameter(file.read(name).float(), requires_grad=False)
            else:
                kind = _StoredEmbedding if name == "embedding.weight" else _StoredLinear
                setattr(model.get_submodule(owner), attribute, kind(file, name))
        yield LoadedModel(model=model.eval(), tokenizer=tokenizer, has_adapter=False)
