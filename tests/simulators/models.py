"""Small real models on disk, for what really runs one."""

import shutil
from pathlib import Path

import torch

from model import (
    LoRAConfig,
    QuantizedAdapter,
    initial_adapter,
    preset,
    pretrain_tiny,
    save_adapter,
    save_quantized_adapter,
)
from model.adapter_format import AdapterFormat

LORA = LoRAConfig(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj"))
TEXTS = [
    f"The quick brown fox number {n} jumps over {n * 7} lazy dogs and says hello, how are you?" for n in range(400)
]


def write_base_version(tree: Path) -> Path:
    """A `tiny-pyramid` base that has hardly learnt anything; always the same."""
    pretrain_tiny(tree, steps=2, seed=0, texts=TEXTS)
    return tree


def write_adapter_version(
    base: Path,
    tree: Path,
    *,
    seed: int = 1,
    has_effect: bool = True,
    strength: float = 0.1,
    form: AdapterFormat = "float16",
) -> Path:
    """The same base with an adapter on it."""
    shutil.copytree(base / "base", tree / "base")
    state = initial_adapter(preset("tiny-pyramid"), LORA, seed)
    if has_effect:
        generator = torch.Generator().manual_seed(seed)
        for name, value in state.items():
            state[name] = value + strength * torch.randn(value.shape, generator=generator)
    if form == "float16":
        save_adapter(tree / "adapter", state, LORA)
    else:
        numbers = {name: value.numpy() for name, value in state.items()}
        save_quantized_adapter(tree / "adapter", QuantizedAdapter.of(numbers, form), LORA)
    return tree
