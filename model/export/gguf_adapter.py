"""A LoRA adapter as a GGUF file of its own, which llama.cpp puts on and takes off while the base stays loaded."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from model.config import MAX_CONFIG_BYTES, ModelConfig
from model.errors import CheckpointError, ConfigError, ExportError
from model.export.adapters import read_adapter
from model.export.gguf import gguf_architecture, gguf_package, gguf_tensors
from model.export.layout import interleaved_rows
from model.files import read_text, replace_durably

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model.config import LoRAConfig
    from model.export.layout import ForeignTensor
    from model.export.weights import Floats


def export_gguf_adapter(adapter: Path, out_file: Path, *, base: Path) -> str:
    """Write an adapter in PEFT's layout for the GGUF file that `export_gguf` makes of the base without it.

    Where llama.cpp keeps q, k and v in one matrix, their branches become one: A below each other, B block-diagonal.

    Args:
        adapter: Folder with adapter_config.json and adapter_model.safetensors.
        out_file: Replaced atomically; the same adapter gives the same bytes. Its tensors are float32.
        base: Folder of the checkpoint that the adapter was trained on; only its config.json is read.

    Returns:
        The architecture that the file fits: `llama`, `deci` or `openelm`.

    Raises:
        ExportError: GGUF cannot express the base, or the package `gguf` is missing.
        AdapterError: The adapter is damaged or does not fit the base.
        CheckpointError: The base has no sound config.json, or the disk does not take the file.
    """
    gguf = gguf_package()
    try:
        config = ModelConfig.from_json(read_text(base / "config.json", max_bytes=MAX_CONFIG_BYTES))
    except ConfigError as error:
        raise CheckpointError(f"{base / 'config.json'}: {error}") from error
    architecture = gguf_architecture(config)
    lora, state = read_adapter(adapter, config)
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", lora.alpha)
    count = 0
    for tensor in gguf_tensors(config):
        branch = _branch(tensor, config, lora, state)
        if branch is not None:
            writer.add_tensor(f"{tensor.name}.lora_a", branch[0])
            writer.add_tensor(f"{tensor.name}.lora_b", branch[1])
            count += 1
    if not count:
        raise ExportError(f"the adapter in {adapter} has no tensor that GGUF can express")

    def write(temporary: Path) -> None:
        with closing(writer):
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()

    replace_durably(out_file, write)
    return architecture


def _branch(
    tensor: ForeignTensor, config: ModelConfig, lora: LoRAConfig, state: Mapping[str, Floats]
) -> tuple[Floats, Floats] | None:
    """A (rank, in) and B (out, rank) on one tensor; None where the adapter leaves it alone."""
    paths = [part.removesuffix(".weight") for part in tensor.parts]
    adapted = [path for path in paths if f"{path}.lora_a" in state]
    if not adapted:
        return None
    a = np.concatenate([state[f"{path}.lora_a"] for path in adapted])
    b = np.zeros((tensor.shape(config)[0], len(a)), dtype=np.float32)
    row = 0
    for path, part in zip(paths, tensor.parts, strict=True):
        rows = config.parameter_shapes()[part][0]
        if path in adapted:
            column = adapted.index(path) * lora.rank
            # llama.cpp divides alpha by the rank of what it finds, which is here that of all branches together.
            b[row : row + rows, column : column + lora.rank] = state[f"{path}.lora_b"] * np.float32(len(adapted))
        row += rows
    if tensor.interleaved:
        b = b[interleaved_rows(len(b), config.head_dim)]
    return np.ascontiguousarray(a), np.ascontiguousarray(b)
