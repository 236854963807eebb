"""An adapter on disk in PEFT's layout: adapter_config.json and adapter_model.safetensors.

`peft` loads what is written here onto the Llama-architecture twin of the base, and what it wrote is read here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import torch

from model.config import LoRAConfig
from model.errors import AdapterError, CheckpointError, ConfigError
from model.tensor_file import TensorFile, read_text, write_tensors, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model.lora.state import AdapterState

_MAX_CONFIG_BYTES: Final = 1024 * 1024
_PREFIX: Final = "base_model.model.model."
_PEFT_NAME: Final = re.compile(
    re.escape(_PREFIX) + r"layers\.(\d{1,4})\.(self_attn|mlp)\.([a-z]{1,8}_proj)\.lora_([AB])\.weight"
)
_OUR_NAME: Final = re.compile(r"layers\.(\d{1,4})\.(attention|ffn)\.([a-z]{1,8}_proj)\.lora_([ab])")
_TO_PEFT: Final = {"attention": "self_attn", "ffn": "mlp"}
_FROM_PEFT: Final = {peft: ours for ours, peft in _TO_PEFT.items()}

# Settings of PEFT without an effect on what a loaded plain LoRA computes. Any other must be off, or it would be ignored
# in silence and the adapter would answer differently here than where it was trained.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "megatron_core",
        "peft_version", "qalora_group_size", "revision", "task_type", "ensure_weight_tying",
    }
)  # fmt: skip


def save_adapter(
    folder: Path, state: Mapping[str, torch.Tensor], config: LoRAConfig, *, dtype: torch.dtype = torch.float16
) -> None:
    """Write an adapter, each file atomically; the same adapter gives the same bytes.

    Raises:
        AdapterError: A name is not one of `adapter_shapes`, or a value is not finite in the dtype.
        CheckpointError: This disk does not take it.
    """
    tensors = {_peft_name(name): tensor.to(dtype) for name, tensor in state.items()}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{name} has values that are not finite in {dtype}; the adapter is not written")
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
    }
    write_tensors(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    write_text(folder / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")


def load_adapter(folder: Path) -> tuple[AdapterState, LoRAConfig]:
    """Read an adapter as stored; `load_adapter_state` checks that it fits a base.

    Raises:
        AdapterError: A file is missing or damaged, or the adapter is of a kind that this program does not compute.
    """
    try:
        settings = json.loads(read_text(folder / "adapter_config.json", max_bytes=_MAX_CONFIG_BYTES))
        config = _config(settings)
        with TensorFile(folder / "adapter_model.safetensors") as file:
            return {_our_name(name): file.read(name) for name in file.tensors}, config
    except (CheckpointError, ConfigError, ValueError, RecursionError) as error:
        raise AdapterError(f"the adapter in {folder} cannot be used: {error}") from error


def _config(settings: Any) -> LoRAConfig:  # noqa: ANN401  (parsed JSON, checked here)
    if not isinstance(settings, dict):
        raise ConfigError("adapter_config.json is no JSON object")
    rest = dict(settings)
    kind, bias = rest.pop("peft_type", None), rest.pop("bias", "none")
    if kind != "LORA" or bias != "none":
        raise ConfigError(f"only LoRA without biases is supported, this is peft_type={kind!r}, bias={bias!r}")
    rank, alpha, dropout = rest.pop("r", None), rest.pop("lora_alpha", None), rest.pop("lora_dropout", 0.0)
    targets = rest.pop("target_modules", None)
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ConfigError("target_modules must be a list of projection names")
    active = sorted(key for key, value in rest.items() if key not in _WITHOUT_EFFECT and value)
    if active:
        raise ConfigError(f"adapter_config.json asks for {active}, which this program does not compute")
    return LoRAConfig(rank=rank, alpha=alpha, dropout=dropout, targets=tuple(targets))


def _peft_name(name: str) -> str:
    match = _OUR_NAME.fullmatch(name)
    if match is None:
        raise AdapterError(f"{name!r} is no adapter tensor's name")
    layer, part, projection, factor = match.groups()
    return f"{_PREFIX}layers.{layer}.{_TO_PEFT[part]}.{projection}.lora_{factor.upper()}.weight"


def _our_name(name: str) -> str:
    match = _PEFT_NAME.fullmatch(name)
    if match is None:
        raise AdapterError(f"{name!r} is not the name of a LoRA tensor of a Llama-architecture model")
    layer, part, projection, factor = match.groups()
    return f"layers.{int(layer)}.{_FROM_PEFT[part]}.{projection}.lora_{factor.lower()}"
