"""An adapter on disk in PEFT's layout: adapter_config.json and adapter_model.safetensors.

`peft` loads what `save_adapter` writes onto the Llama-architecture twin of the base, and what it wrote is read here.
Quantised adapters (`model.quantized_adapter`) are read here as well, as the floats that they stand for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.errors import AdapterError, CheckpointError, ConfigError
from model.files import read_text, write_text
from model.peft_format import MAX_CONFIG_BYTES, config_text, our_name, parse_config, peft_name
from model.quantized_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_quantized
from model.tensor_file import TensorFile, write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model.config import LoRAConfig
    from model.lora.state import AdapterState


def save_adapter(
    folder: Path, state: Mapping[str, torch.Tensor], config: LoRAConfig, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write an adapter, each file atomically; the same adapter gives the same bytes.

    Raises:
        AdapterError: A name is not one of `adapter_shapes`, or a value is not finite in the dtype.
        CheckpointError: This disk does not take it.
    """
    tensors = {peft_name(name): tensor.to(dtype) for name, tensor in state.items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{name} has values that are not finite in {dtype}; the adapter is not written")
    write_tensors(folder / ADAPTER_WEIGHTS, tensors, metadata={"format": "pt"})
    write_text(folder / ADAPTER_CONFIG, config_text(config))


def load_adapter(folder: Path) -> tuple[AdapterState, LoRAConfig]:
    """Read an adapter as stored, a quantised one as float32; `load_adapter_state` checks that it fits a base.

    Raises:
        AdapterError: A file is missing or damaged, or the adapter is of a kind that this program does not compute.
    """
    try:
        config, form = parse_config(read_text(folder / ADAPTER_CONFIG, max_bytes=MAX_CONFIG_BYTES))
        with TensorFile(folder / ADAPTER_WEIGHTS) as file:
            if form is not None:
                floats = read_quantized(file, config, form).floats()
                return {name: torch.from_numpy(values) for name, values in floats.items()}, config
            return {our_name(name): file.read(name) for name in file.tensors}, config
    except (CheckpointError, ConfigError) as error:
        raise AdapterError(f"the adapter in {folder} cannot be used: {error}") from error
