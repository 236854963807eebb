"""An adapter read from its files as plain arrays. Without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model.errors import AdapterError, CheckpointError, ConfigError
from model.export.weights import as_array, widened
from model.files import read_text
from model.peft_format import MAX_CONFIG_BYTES, our_name, parse_config
from model.quantized_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_quantized
from model.raw_tensor_file import RawTensorFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model.config import LoRAConfig, ModelConfig
    from model.export.weights import Floats


def read_adapter(folder: Path, config: ModelConfig) -> tuple[LoRAConfig, dict[str, Floats]]:
    """An adapter's settings and its tensors by our names, float32.

    Raises:
        AdapterError: It is damaged, of a kind that is not computed here, or does not fit the base.
    """
    lora, state = adapter_floats(folder)
    _require_fit(folder, config, lora, state)
    return lora, state


def adapter_floats(folder: Path) -> tuple[LoRAConfig, dict[str, Floats]]:
    """The same of an adapter whose base is not known.

    Raises:
        AdapterError: It is damaged, or of a kind that is not computed here.
    """
    try:
        lora, form = parse_config(read_text(folder / ADAPTER_CONFIG, max_bytes=MAX_CONFIG_BYTES))
        with RawTensorFile(folder / ADAPTER_WEIGHTS) as file:
            return lora, _floats(file) if form is None else read_quantized(file, lora, form).floats()
    except (CheckpointError, ConfigError) as error:
        raise AdapterError(f"the adapter in {folder} cannot be used: {error}") from error


def _floats(file: RawTensorFile) -> dict[str, Floats]:
    state = {}
    for name, entry in file.entries.items():
        values = widened(as_array(file.read_bytes(name), entry.dtype)).reshape(entry.shape)
        if not np.isfinite(values).all():
            raise AdapterError(f"{name} has values that are not finite; do not use this adapter")
        state[our_name(name)] = values
    return state


def _require_fit(folder: Path, config: ModelConfig, lora: LoRAConfig, state: Mapping[str, Floats]) -> None:
    shapes: dict[str, tuple[int, int]] = {}
    for layer, projection in config.stored_projections():
        if lora.adapts(layer, projection):
            rows, columns = config.projection_shape(layer, projection)
            path = config.projection_path(layer, projection)
            shapes |= {f"{path}.lora_a": (lora.rank, columns), f"{path}.lora_b": (rows, lora.rank)}
    wrong = sorted(set(shapes) ^ set(state)) or [name for name in shapes if state[name].shape != shapes[name]]
    if wrong:
        raise AdapterError(
            f"the adapter in {folder} does not fit this base: {wrong[0]} and {len(wrong) - 1} more are missing, "
            "unexpected or of another shape; take the adapter that was made for the base"
        )
