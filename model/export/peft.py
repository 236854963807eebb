"""An adapter for PEFT, whatever its numbers are stored as. Without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.numpy

from model.export.adapters import adapter_floats
from model.files import replace_durably, write_text
from model.peft_format import config_text, peft_name
from model.quantized_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from pathlib import Path


def export_peft(adapter: Path, out: Path) -> None:
    """Write an adapter as floats in PEFT's layout: float32, the numbers that a quantised one stands for.

    Args:
        adapter: Folder of an adapter, quantised or not.
        out: Folder to fill; the same adapter gives the same bytes.

    Raises:
        AdapterError: The adapter is damaged.
        CheckpointError: The disk does not take the files.
    """
    lora, state = adapter_floats(adapter)
    tensors = {peft_name(name): values for name, values in state.items()}
    replace_durably(
        out / ADAPTER_WEIGHTS, lambda temporary: safetensors.numpy.save_file(tensors, temporary, {"format": "pt"})
    )
    write_text(out / ADAPTER_CONFIG, config_text(lora))
