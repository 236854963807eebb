"""A model on disk: config.json, model.safetensors and the tokenizer's two files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from model.config import MAX_CONFIG_BYTES, ModelConfig
from model.errors import CheckpointError, ConfigError
from model.lora import add_lora, load_adapter, load_adapter_state
from model.tensor_file import TensorFile, read_text, write_tensors, write_text
from model.tokenizer import Tokenizer
from model.transformer import LayeredTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class LoadedModel:
    """What runs: a model in evaluation mode, its tokenizer, and whether an adapter sits on it."""

    model: LayeredTransformer
    tokenizer: Tokenizer
    has_adapter: bool


def save_checkpoint(
    folder: Path, model: LayeredTransformer, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write a model's weights, config and tokenizer; an adapter on it is left out, a merged one is in the weights.

    Raises:
        CheckpointError: This disk does not take it, or a weight does not fit the dtype.
    """
    weights = model.state_dict()
    write_checkpoint(
        folder,
        model.config,
        {name: weights[name].to(dtype) for name in model.config.parameter_shapes()},
        tokenizer,
    )


def write_checkpoint(
    folder: Path, config: ModelConfig, tensors: Mapping[str, torch.Tensor], tokenizer: Tokenizer
) -> None:
    """Write a checkpoint from its parts; each file appears whole or not at all, config.json last.

    Raises:
        CheckpointError: A tensor is not finite in its dtype, the tokenizer does not fit, or the disk refuses.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding only {config.vocab_size} rows"
        )
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name} has values that are not finite in {tensor.dtype}; store it as bfloat16")
    tokenizer.save(folder)
    write_tensors(folder / "model.safetensors", tensors, metadata={"format": "pt"})
    write_text(folder / "config.json", config.to_json())


def load_checkpoint(folder: Path, *, dtype: torch.dtype = torch.float32) -> LayeredTransformer:
    """Read a checkpoint into a frozen model in evaluation mode.

    Memory: the weights in `dtype` plus one tensor as stored. The modules are planned without storage, then each
    tensor is read, converted and handed over.

    Raises:
        CheckpointError: A file is missing or damaged, or weights and config do not fit together.
    """
    try:
        config = ModelConfig.from_json(read_text(folder / "config.json", max_bytes=MAX_CONFIG_BYTES))
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    with TensorFile(folder / "model.safetensors") as file:
        file.require_shapes(config.parameter_shapes())
        with torch.device("meta"):
            model = LayeredTransformer(config)
        for name in file.tensors:
            owner, _, attribute = name.rpartition(".")
            weight = nn.Parameter(file.read(name).to(dtype), requires_grad=False)
            setattr(model.get_submodule(owner), attribute, weight)
    return model.eval()


def load_version(tree: Path, *, dtype: torch.dtype = torch.float32, with_adapter: bool = True) -> LoadedModel:
    """Load a version's tree: `base/`, and `adapter/` on top where there is one.

    Args:
        tree: Folder of the version.
        dtype: What the weights are computed in.
        with_adapter: False leaves the adapter out.

    Raises:
        CheckpointError: The base is missing or damaged.
        AdapterError: The adapter is damaged or does not fit the base.
    """
    model = load_checkpoint(tree / "base", dtype=dtype)
    tokenizer = Tokenizer.from_folder(tree / "base")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise CheckpointError(
            f"{tree / 'base'}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        )
    has_adapter = with_adapter and (tree / "adapter").is_dir()
    if has_adapter:
        state, lora = load_adapter(tree / "adapter")
        add_lora(model, lora)
        load_adapter_state(model, state)
        model.eval()
    return LoadedModel(model=model, tokenizer=tokenizer, has_adapter=has_adapter)
