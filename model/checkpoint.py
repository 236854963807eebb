"""A model on disk: config.json, model.safetensors and the tokenizer's two files."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from model.config import MAX_CONFIG_BYTES, ModelConfig
from model.errors import CheckpointError, ConfigError, QuantizationError
from model.files import read_text, write_text
from model.lora import add_lora, load_adapter, load_adapter_state
from model.quantization.apply import dense_state, install, plan_of, quantized_layers
from model.quantization.plan import MAX_PLAN_BYTES, PLAN_FILE, QuantizationPlan
from model.tensor_file import TensorFile, stream_tensors
from model.tokenizer import Tokenizer
from model.transformer import LayeredTransformer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
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

    Quantised weights are written dense; `save_quantized` keeps them as they are.

    Raises:
        CheckpointError: This disk does not take it, or a weight does not fit the dtype.
    """
    tensors = {name: weight.to(dtype) for name, weight in dense_state(model).items()}
    write_checkpoint(folder, model.config, tensors, tokenizer)


def save_quantized(
    folder: Path, model: LayeredTransformer, tokenizer: Tokenizer, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write a quantised model: as `save_checkpoint`, with the quantised weights as stored and `quantization.json`.

    Args:
        folder: Where to; made if it is missing.
        model: From `quantize_model`, or loaded from such a folder; an adapter on it is left out.
        tokenizer: Its tokenizer.
        dtype: Of the weights that are not quantised.

    Raises:
        CheckpointError: This disk does not take it, a weight does not fit the dtype, or an adapter is merged.
    """
    layers = dict(quantized_layers(model))
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if name in model.config.parameter_shapes():
            if name in layers:
                raise CheckpointError(f"an adapter is merged into {name}; call unmerge_lora, or use save_checkpoint")
            tensors[name] = weight.to(dtype)
    for name, layer in layers.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in layer.stored.items()}
    write_checkpoint(folder, model.config, tensors, tokenizer, plan=plan_of(model))


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer,
    *,
    plan: QuantizationPlan | None = None,
) -> None:
    """Write a checkpoint from its parts; each file appears whole or not at all, config.json last.

    A plan says how tensors are quantised; without one, a `quantization.json` of an earlier checkpoint is removed.

    Raises:
        CheckpointError: A tensor is not finite in its dtype, the tokenizer does not fit, or the disk refuses.
    """
    stored = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_checkpoint(folder, config, stored, tensors.items(), tokenizer, plan=plan)


def stream_checkpoint(
    folder: Path,
    config: ModelConfig,
    stored: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    pieces: Iterable[tuple[str, torch.Tensor]],
    tokenizer: Tokenizer,
    *,
    plan: QuantizationPlan | None = None,
) -> None:
    """Write a checkpoint whose weights never lie in memory together: the bytes that `write_checkpoint` would give it.

    Args:
        folder: Where to; made if it is missing, and gone again if it cannot be filled.
        config: The model's shape.
        stored: Dtype and shape of every tensor of model.safetensors.
        pieces: Name and next rows of a tensor; of one tensor in order, of several in any.
        tokenizer: Its tokenizer.
        plan: As for `write_checkpoint`.

    Raises:
        CheckpointError: A tensor is not finite in its dtype, the tokenizer does not fit, or the disk refuses. What
            reading the pieces raises goes through.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding only {config.vocab_size} rows"
        )
    is_new = not folder.exists()
    try:
        stream_tensors(folder / "model.safetensors", stored, _finite(pieces))
    except BaseException:
        if is_new:
            with suppress(OSError):  # it was never made
                folder.rmdir()
        raise
    tokenizer.save(folder)
    if plan is None:
        (folder / PLAN_FILE).unlink(missing_ok=True)
    else:
        write_text(folder / PLAN_FILE, plan.to_json())
    write_text(folder / "config.json", config.to_json())


def _finite(pieces: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, piece in pieces:
        if not bool(torch.isfinite(piece).all()):
            raise CheckpointError(f"{name} has values that are not finite in {piece.dtype}; store it as bfloat16")
        yield name, piece


def load_checkpoint(folder: Path, *, dtype: torch.dtype = torch.float32) -> LayeredTransformer:
    """Read a checkpoint into a frozen model in evaluation mode.

    Memory: the weights in `dtype` plus one tensor as stored. The modules are planned without storage, then each
    tensor is read, converted and handed over. Quantised weights stay as they are stored and compute in `dtype`.

    Raises:
        CheckpointError: A file is missing or damaged, or weights and config do not fit together.
    """
    config, plan = read_config(folder), read_plan(folder)
    with TensorFile(folder / "model.safetensors") as file:
        require_stored(file, config, plan)
        with torch.device("meta"):
            model = LayeredTransformer(config)
        for name in config.parameter_shapes():
            if name not in plan.tensors:
                owner, _, attribute = name.rpartition(".")
                weight = nn.Parameter(file.read(name).to(dtype), requires_grad=False)
                setattr(model.get_submodule(owner), attribute, weight)
        for name in plan.tensors:
            install(model, name, read_parts(file, name), plan.tensors[name])
    return model.eval()


def read_config(folder: Path) -> ModelConfig:
    """The shape of the checkpoint in a folder.

    Raises:
        CheckpointError: config.json is missing or damaged.
    """
    try:
        return ModelConfig.from_json(read_text(folder / "config.json", max_bytes=MAX_CONFIG_BYTES))
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def read_plan(folder: Path) -> QuantizationPlan:
    """How the checkpoint in a folder is quantised; without entries if it is not.

    Raises:
        CheckpointError: quantization.json is damaged.
    """
    if not (folder / PLAN_FILE).exists():
        return QuantizationPlan({})
    try:
        return QuantizationPlan.from_json(read_text(folder / PLAN_FILE, max_bytes=MAX_PLAN_BYTES))
    except QuantizationError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def require_stored(file: TensorFile, config: ModelConfig, plan: QuantizationPlan) -> None:
    """Check names, shapes and dtypes before anything is read."""
    try:
        stored = plan.stored_tensors(config)
    except QuantizationError as error:
        raise CheckpointError(f"{file.path.parent / PLAN_FILE}: {error}") from error
    file.require_shapes({name: tensor.shape for name, tensor in stored.items()})
    for name, tensor in stored.items():
        if not tensor.allows(found := file.entries[name].dtype):
            raise CheckpointError(
                f"{file.path}: {name} is {found}, its place needs {tensor.dtype or 'a floating-point dtype'}; "
                "quantise or import the base again"
            )


def read_parts(file: TensorFile, name: str) -> dict[str, torch.Tensor]:
    """The stored parts of a quantised weight; a scale that is not finite would make every answer NaN."""
    parts = {
        part: file.read(f"{name}.{part}")
        for part in ("values", "scales", "zeros", "tops")
        if f"{name}.{part}" in file.tensors
    }
    for part in ("scales", "zeros", "tops"):
        if part in parts and not bool(torch.isfinite(parts[part]).all()):
            raise CheckpointError(f"{file.path}: {name}.{part} is not finite; quantise the base again")
    return parts


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
