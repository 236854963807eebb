"""An adapter as named tensors, apart from any model: what a server averages and a device sends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from model.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from model.config import LoRAConfig, ModelConfig

AdapterState = dict[str, torch.Tensor]


def adapter_shapes(config: ModelConfig, lora: LoRAConfig) -> dict[str, tuple[int, int]]:
    """Name and shape of every adapter tensor: `PATH.lora_a` is (rank, in), `PATH.lora_b` is (out, rank).

    Layers that share weights share the adapter on them.

    Raises:
        AdapterError: The LoRA config names a layer that stores no weights.
    """
    if foreign := sorted(set(lora.layers) - set(config.stored_layers)):
        raise AdapterError(f"layers {foreign} have no weights to adapt; choose among {list(config.stored_layers)}")
    shapes: dict[str, tuple[int, int]] = {}
    for layer, projection in config.stored_projections():
        if lora.adapts(layer, projection):
            rows, columns = config.projection_shape(layer, projection)
            path = config.projection_path(layer, projection)
            shapes[f"{path}.lora_a"] = (lora.rank, columns)
            shapes[f"{path}.lora_b"] = (rows, lora.rank)
    return shapes


def initial_adapter(config: ModelConfig, lora: LoRAConfig, seed: int) -> AdapterState:
    """A new adapter, float32, that leaves every logit as it is: A is random, B is zero.

    Needs the shape of the base, not its weights. A is Kaiming-uniform with a = sqrt(5), as in PEFT.
    """
    generator = torch.Generator().manual_seed(seed)
    state: AdapterState = {}
    for name, shape in adapter_shapes(config, lora).items():
        if name.endswith(".lora_a"):
            bound = 1.0 / math.sqrt(shape[1])
            state[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        else:
            state[name] = torch.zeros(shape)
    return state


def check_adapter_state(state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Check that a state has exactly these names and shapes and only finite numbers.

    Raises:
        AdapterError: It has not.
    """
    missing, unexpected = sorted(set(shapes) - set(state)), sorted(set(state) - set(shapes))
    if missing or unexpected:
        raise AdapterError(
            f"the adapter does not fit this base and LoRA config: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(unexpected)} unexpected {unexpected[:2]}"
        )
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise AdapterError(f"{name} has shape {list(state[name].shape)}, this base and rank need {list(shape)}")
        if not state[name].is_floating_point() or not bool(torch.isfinite(state[name]).all()):
            raise AdapterError(f"{name} has values that are no finite floating-point numbers; do not use this adapter")
