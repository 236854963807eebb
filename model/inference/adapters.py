"""An adapter beside packed weights: added to the outputs of the sequences that ask for it, never merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import torch

from model.inference.heads import pair_order, query_scale, reorder_heads
from model.lora import adapter_shapes, check_adapter_state, load_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from model.config import LoRAConfig, ModelConfig

# Projections that are one product in the decoder, in the order of its outputs.
_GROUPS: Final = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


class PackedAdapter:
    """The two factors of each product: (in, R) and (R, out), where R counts the ranks of all its projections.

    The base is not touched: without the adapter its outputs are what they were, bit for bit.
    """

    def __init__(self, config: ModelConfig, state: Mapping[str, Tensor], lora: LoRAConfig) -> None:
        """Pack an adapter's tensors.

        Raises:
            AdapterError: They do not fit the model.
        """
        check_adapter_state(state, adapter_shapes(config, lora))
        self._factors: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        for layer in config.stored_layers:
            for group in _GROUPS:
                factors = _factors(config, state, lora, layer, group)
                if factors is not None:
                    self._factors[layer, group] = factors

    @classmethod
    def from_folder(cls, config: ModelConfig, folder: Path) -> Self:
        """Read an adapter as PEFT stores it.

        Raises:
            AdapterError: A file is missing or damaged, or the adapter does not fit the model.
        """
        state, lora = load_adapter(folder)
        return cls(config, state, lora)

    def add(self, out: Tensor, x: Tensor, place: tuple[str, int, float]) -> None:
        """Add the branch of one product in place: `out` (T, out) from `x` (T, in).

        Args:
            out: What the base computed.
            x: Its input.
            place: Group and layer of the product, and what x is to be multiplied by.
        """
        group, layer, scale = place
        factors = self._factors.get((layer, group))
        if factors is not None:
            out.addmm_(x @ factors[0], factors[1], alpha=scale)


def _factors(
    config: ModelConfig, state: Mapping[str, Tensor], lora: LoRAConfig, layer: int, group: str
) -> tuple[Tensor, Tensor] | None:
    present = [p for p in _GROUPS[group] if p in config.projections_of(layer)]
    rows = [config.projection_shape(layer, p)[0] for p in present]
    downs, ups, begin = [], [], 0
    for projection, height in zip(present, rows, strict=True):
        path = config.projection_path(layer, projection)
        if f"{path}.lora_a" in state:
            up = state[f"{path}.lora_b"].float() * lora.scaling
            if projection in {"q_proj", "k_proj"}:
                up = reorder_heads(up, pair_order(config.head_dim))
            if projection == "q_proj" and not config.qk_norm:
                up = up * query_scale(config)
            wide = torch.zeros(sum(rows), up.shape[1])
            wide[begin : begin + height] = up
            downs.append(state[f"{path}.lora_a"].float())
            ups.append(wide)
        begin += height
    if not downs:
        return None
    return torch.cat(downs).t().contiguous(), torch.cat(ups, dim=1).t().contiguous()
