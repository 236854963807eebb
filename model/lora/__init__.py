"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): on a model, as named tensors, and as PEFT's files."""

from model.lora.layers import (
    LoRALinear,
    adapter_state_dict,
    add_lora,
    load_adapter_state,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from model.lora.peft_files import load_adapter, save_adapter
from model.lora.state import adapter_shapes, check_adapter_state, initial_adapter

__all__ = [
    "LoRALinear",
    "adapter_shapes",
    "adapter_state_dict",
    "add_lora",
    "check_adapter_state",
    "initial_adapter",
    "load_adapter",
    "load_adapter_state",
    "merge_lora",
    "remove_lora",
    "save_adapter",
    "unmerge_lora",
]
