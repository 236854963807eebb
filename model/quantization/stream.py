"""From a base on disk to a quantised one, a few rows of a weight in memory at a time: no model is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from model.checkpoint import read_config, read_plan, require_stored, stream_checkpoint
from model.errors import QuantizationError
from model.quantization.apply import quantize_weight
from model.quantization.weights import to_stored
from model.tensor_file import TensorFile, torch_dtype
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model.quantization.plan import QuantizationPlan


def quantize_stored(
    source: Path, out: Path, plan: QuantizationPlan, *, on_tensor: Callable[[str], None] = lambda _: None
) -> None:
    """Round every weight of the plan to its nearest levels, and write the rest in float16.

    Args:
        source: A checkpoint's folder.
        out: Folder to fill, with the bytes that `quantize_model` and `save_quantized` would give it.
        plan: How each weight is stored.
        on_tensor: Called with the name of each weight that was rounded.

    Raises:
        QuantizationError: The base is quantised already, the plan does not fit it, or a value is not finite.
        CheckpointError: The base is missing or damaged, or this disk does not take the result.
    """
    config, found = read_config(source), read_plan(source)
    if found.tensors:
        raise QuantizationError("the model is quantised already; start from the base in 16 or 32 bits")
    plan.require_fit(config)
    with TensorFile(source / "model.safetensors") as file:
        require_stored(file, config, found)
        stored = {
            name: (torch_dtype(tensor.dtype or "F16"), tensor.shape)
            for name, tensor in plan.stored_tensors(config).items()
        }
        stream_checkpoint(out, config, stored, _pieces(file, plan, on_tensor), Tokenizer.from_folder(source), plan=plan)


@torch.no_grad()
def _pieces(
    file: TensorFile, plan: QuantizationPlan, on_tensor: Callable[[str], None]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, info in file.tensors.items():
        # Levels are found for each row by itself, so that rows can be rounded a few at a time.
        for rows in file.rows(name, 0, info.shape[0]):
            if (tensor_plan := plan.tensors.get(name)) is None:
                yield name, rows.to(torch.float16)
                continue
            try:
                parts = to_stored(quantize_weight(rows, tensor_plan))
            except QuantizationError as error:
                raise QuantizationError(f"{name}: {error}") from error
            for part, values in parts.items():
                yield f"{name}.{part}", values
        if name in plan.tensors:
            on_tensor(name)
