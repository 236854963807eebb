"""PEFT's layout of an adapter on disk, and what we add to it: settings and names. Without torch."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, cast

from model.adapter_format import BITS
from model.config import LoRAConfig
from model.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from model.adapter_format import QuantizedFormat

MAX_CONFIG_BYTES: Final = 1024 * 1024
_PREFIX: Final = "base_model.model.model."
_PEFT_NAME: Final = re.compile(
    re.escape(_PREFIX) + r"layers\.(\d{1,4})\.(self_attn|mlp)\.([a-z]{1,8}_proj)\.lora_([AB])\.weight"
)
_OUR_NAME: Final = re.compile(r"layers\.(\d{1,4})\.(attention|ffn)\.([a-z]{1,8}_proj)\.lora_([ab])")
_TO_PEFT: Final = {"attention": "self_attn", "ffn": "mlp"}
_FROM_PEFT: Final = {peft: ours for ours, peft in _TO_PEFT.items()}
# Of a quantised adapter. PEFT knows no such type and says so; told "LORA", it would load an adapter of zeros.
_QUANTIZED_TYPE: Final = "QUANTIZED_LORA"
_QUANTIZED_VERSION: Final = 1
_MAX_SHOWN: Final = 60  # characters of a foreign value

# Settings of PEFT without an effect on what a loaded plain LoRA computes. Any other must be off, or it would be ignored
# in silence and the adapter would answer differently here than where it was trained.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights", "megatron_core",
        "peft_version", "qalora_group_size", "revision", "task_type", "ensure_weight_tying",
    }
)  # fmt: skip


def parse_config(text: str) -> tuple[LoRAConfig, QuantizedFormat | None]:
    """Read an adapter_config.json: the adapter's shape, and how its numbers are stored (None: as floats).

    Raises:
        ConfigError: It is malformed, or asks for something that this program does not compute.
    """
    try:
        settings: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"adapter_config.json is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError("adapter_config.json is no JSON object")
    rest = dict(settings)
    form = _quantized_format(rest)
    kind, bias = rest.pop("peft_type", None), rest.pop("bias", "none")
    if kind != (_QUANTIZED_TYPE if form else "LORA") or bias != "none":
        raise ConfigError(f"only LoRA without biases is supported, this is peft_type={kind!r}, bias={bias!r}")
    rank, alpha, dropout = rest.pop("r", None), rest.pop("lora_alpha", None), rest.pop("lora_dropout", 0.0)
    targets = rest.pop("target_modules", None)
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ConfigError("target_modules must be a list of projection names")
    layers = _layers(rest.pop("layers_to_transform", None), rest.pop("layers_pattern", None))
    active = sorted(key for key, value in rest.items() if key not in _WITHOUT_EFFECT and value)
    if active:
        raise ConfigError(f"adapter_config.json asks for {active}, which this program does not compute")
    lora = LoRAConfig(rank=rank, alpha=alpha, dropout=dropout, targets=tuple(targets), layers=layers)
    return lora, form


def _quantized_format(settings: dict[str, Any]) -> QuantizedFormat | None:
    """Take out how the numbers are stored."""
    if settings.get("peft_type") != _QUANTIZED_TYPE:
        return None
    form, version = settings.pop("format", None), settings.pop("format_version", None)
    if version != _QUANTIZED_VERSION or not isinstance(form, str) or form not in BITS:
        raise ConfigError(
            f"the adapter has the format {form!r:.{_MAX_SHOWN}} version {version!r:.{_MAX_SHOWN}}, this program reads "
            f"{' and '.join(BITS)} of version {_QUANTIZED_VERSION}; update this program, or release the adapter in one "
            "of these"
        )
    return cast("QuantizedFormat", form)


def _layers(layers: Any, pattern: Any) -> tuple[int, ...]:  # noqa: ANN401  (parsed JSON, checked here)
    """Which layers are adapted; PEFT writes one number, a list, or nothing for all."""
    if pattern and pattern not in ("layers", ["layers"]):
        raise ConfigError(f"layers_pattern {pattern!r} is not this architecture's; only 'layers' is")
    if layers is None:
        return ()
    chosen = tuple(layers) if isinstance(layers, list) else (layers,)
    if not chosen:
        raise ConfigError("layers_to_transform is an empty list: the adapter would adapt nothing")
    return chosen


def config_text(config: LoRAConfig, *, form: QuantizedFormat | None = None) -> str:
    """Text of the adapter_config.json of a plain LoRA, or of a quantised one; the same config gives the same bytes."""
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    settings: dict[str, Any] = {
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
    if config.layers:  # left out otherwise, so that the files of an adapter on every layer stay what they were
        settings["layers_to_transform"] = list(config.layers)
    if form is not None:
        settings |= {"peft_type": _QUANTIZED_TYPE, "format": form, "format_version": _QUANTIZED_VERSION}
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def peft_name(name: str) -> str:
    """PEFT's name of one of our adapter tensors.

    Raises:
        AdapterError: It is no adapter tensor's name.
    """
    match = _OUR_NAME.fullmatch(name)
    if match is None:
        raise AdapterError(f"{name!r} is no adapter tensor's name")
    layer, part, projection, factor = match.groups()
    return f"{_PREFIX}layers.{layer}.{_TO_PEFT[part]}.{projection}.lora_{factor.upper()}.weight"


def our_name(name: str) -> str:
    """Our name of one of PEFT's adapter tensors.

    Raises:
        AdapterError: It is not the name of a LoRA tensor of a Llama-architecture model.
    """
    match = _PEFT_NAME.fullmatch(name)
    if match is None:
        raise AdapterError(f"{name!r} is not the name of a LoRA tensor of a Llama-architecture model")
    layer, part, projection, factor = match.groups()
    return f"layers.{int(layer)}.{_FROM_PEFT[part]}.{projection}.lora_{factor.lower()}"
