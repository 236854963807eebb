"""What the config.json of a Hugging Face folder says of a model's shape; what is not computed here is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from model.config import ModelConfig, every_layer
from model.errors import ConfigError, ForeignModelError
from model.plans.openelm import FFN_MULTIPLE, NORM_EPS, evenly_spaced, nearest_multiple

# What each setting must be for our decoder to compute the same; an absent one has this value in transformers too.
_LLAMA: Final[Mapping[str, tuple[Any, ...]]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
}
_OPENELM: Final[Mapping[str, tuple[Any, ...]]] = {
    "activation_fn_name": ("swish", "silu"),
    "ffn_with_glu": (True,),
    "normalization_layer_name": ("rms_norm",),
    "quantization_config": (None,),
    "quantization": (None,),
}


def llama_config(values: Mapping[str, Any]) -> ModelConfig:
    """The shape of a Llama.

    Raises:
        ForeignModelError: A setting that this program does not compute.
        ConfigError: An impossible shape. KeyError, TypeError and the like: a malformed one.
    """
    _require(values, _LLAMA)
    layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
    return ModelConfig(
        vocab_size=values["vocab_size"],
        model_dim=values["hidden_size"],
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        query_heads=every_layer(heads, layers),
        kv_heads=every_layer(values.get("num_key_value_heads") or heads, layers),
        ffn_dims=every_layer(values["intermediate_size"], layers),
        max_context=values["max_position_embeddings"],
        rope_base=float(_rope_base(values)),
        norm_eps=values["rms_norm_eps"],
        tied_embeddings=values.get("tie_word_embeddings", False),
    )


def openelm_config(values: Mapping[str, Any]) -> ModelConfig:
    """The shape of an OpenELM: lists of heads where there are some, else by the published formula.

    Raises:
        ForeignModelError: A setting that this program does not compute.
        ConfigError: An impossible shape. KeyError, TypeError and the like: a malformed one.
    """
    _require(values, _OPENELM)
    layers = len(every_layer(1, values["num_transformer_layers"]))
    dim, head_dim = values["model_dim"], values["head_dim"]
    if not all(isinstance(width, int) and 0 < width < 1 << 24 for width in (dim, head_dim)):
        raise ConfigError(f"model_dim and head_dim must be whole numbers, got {dim!r} and {head_dim!r}")
    group = values.get("num_gqa_groups") or 1
    heads = values.get("num_query_heads")
    if not isinstance(heads, list):
        multipliers = _multipliers(values.get("qkv_multipliers", 1.0), layers)
        heads = [nearest_multiple(dim * m, head_dim * group) // head_dim for m in multipliers]
    divisor = values.get("ffn_dim_divisor", FFN_MULTIPLE)
    ffn = [nearest_multiple(dim * m, divisor) for m in _multipliers(values.get("ffn_multipliers", 4.0), layers)]
    return ModelConfig(
        vocab_size=values["vocab_size"],
        model_dim=dim,
        head_dim=head_dim,
        query_heads=tuple(heads),
        kv_heads=tuple(values.get("num_kv_heads") or [count // group for count in heads]),
        ffn_dims=tuple(ffn),
        max_context=values["max_context_length"],
        rope_base=float(values.get("rope_freq_constant", 10_000)),
        norm_eps=values.get("rms_norm_eps", NORM_EPS),
        qk_norm=values.get("normalize_qk_projections", False),
        tied_embeddings=values.get("share_input_output_layers", False),
    )


def _require(values: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    for key, choices in allowed.items():
        if (found := values.get(key, choices[0])) not in choices:
            raise ForeignModelError(f"{key} is {found!r}, only {choices[0]!r} is supported")


def _rope_base(values: Mapping[str, Any]) -> Any:  # noqa: ANN401  (checked by ModelConfig)
    """Transformers 5 keeps it in rope_parameters, earlier ones beside rope_scaling."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ForeignModelError("rope_parameters is no object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ForeignModelError(f"rotary positions are scaled ({kind!r}), which is not supported")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ForeignModelError("only a part of each head is turned by position, which is not supported")
    return rope.get("rope_theta", values.get("rope_theta", 10_000.0))


def _multipliers(value: Any, layers: int) -> tuple[float, ...]:  # noqa: ANN401  (parsed JSON, checked here)
    """One a layer: from a number for all, the first and the last, or a list."""
    numbers = [value] * layers if isinstance(value, (int, float)) else list(value)
    if not all(isinstance(number, (int, float)) and 0 < number < 1 << 16 for number in numbers):
        raise ConfigError(f"multipliers must be positive numbers, got {value!r}")
    if len(numbers) == 2 != layers:  # noqa: PLR2004  (the first and the last)
        return evenly_spaced(numbers[0], numbers[1], layers)
    if len(numbers) != layers:
        raise ConfigError(f"{len(numbers)} multipliers for {layers} layers")
    return tuple(numbers)
