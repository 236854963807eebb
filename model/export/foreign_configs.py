"""The config.json of a Hugging Face folder: `llama` for uniform plans, `openelm` for layered ones. Without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from model.export.layout import ForeignTensor, is_uniform
from model.plans.openelm import FFN_MULTIPLE, NORM_EPS, evenly_spaced, nearest_multiple

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.export.tokenizer_files import SpecialIds

# OpenELM's own class has this epsilon in its code.
OPENELM_EPS: Final = NORM_EPS

_LLAMA_PARTS: Final = {
    "attention_norm": "input_layernorm",
    **{f"attention.{p}_proj": f"self_attn.{p}_proj" for p in "qkvo"},
    "ffn_norm": "post_attention_layernorm",
    **{f"ffn.{p}_proj": f"mlp.{p}_proj" for p in ("gate", "up", "down")},
}
_KEYS_AND_VALUES: Final = ("attention.k_proj", "attention.v_proj")
_OPENELM_PARTS: Final = {
    "attn_norm": ("attention_norm",),
    "attn.qkv_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.out_proj": ("attention.o_proj",),
    "attn.q_norm": ("attention.q_norm",),
    "attn.k_norm": ("attention.k_norm",),
    "ffn_norm": ("ffn_norm",),
    "ffn.proj_1": ("ffn.gate_proj", "ffn.up_proj"),
    "ffn.proj_2": ("ffn.down_proj",),
}


def hf_architecture(config: ModelConfig) -> str:
    """`llama` where transformers' Llama computes the shape, else `openelm`."""
    return "llama" if is_uniform(config) and not config.qk_norm else "openelm"


def mlx_architecture(config: ModelConfig) -> str:
    """As `hf_architecture`; `hunyuan` where mlx-lm's Hunyuan shares keys and values as this plan does."""
    return "hunyuan" if shared_run(config) is not None else hf_architecture(config)


def shared_run(config: ModelConfig) -> int | None:
    """How many layers in a row attend over the keys and values of the first of them, in a plan that Hunyuan computes.

    Returns:
        None where none share, runs differ in length, or the plan has what Hunyuan has not: layers of several shapes,
        norms of q and k before their rotation, an output of its own, heads that do not add up to the width.
    """
    owners = [layer for layer in range(config.num_layers) if config.kv_layer(layer) == layer]
    run = owners[1] if len(owners) > 1 else config.num_layers
    if len(owners) == config.num_layers or any(config.kv_layer(i) != i - i % run for i in range(config.num_layers)):
        return None
    is_wide = config.query_heads[0] * config.head_dim == config.model_dim
    return run if is_wide and config.tied_embeddings and hf_architecture(config) == "llama" else None


def hf_tensors(config: ModelConfig, architecture: str) -> list[ForeignTensor]:
    """The tensors of a folder of that architecture; shared layers stand once for every layer that runs them."""
    if architecture in {"llama", "hunyuan"}:
        embedding, final, layers = "model.embed_tokens.weight", "model.norm.weight", "model.layers"
        parts: dict[str, tuple[str, ...]] = {theirs: (ours,) for ours, theirs in _LLAMA_PARTS.items()}
    else:
        embedding, final = "transformer.token_embeddings.weight", "transformer.norm.weight"
        layers, parts = "transformer.layers", dict(_OPENELM_PARTS)
        if not config.qk_norm:
            del parts["attn.q_norm"], parts["attn.k_norm"]
    tensors = [ForeignTensor(embedding, ("embedding.weight",))]
    for layer in range(config.num_layers):
        stored = f"layers.{config.weight_layer(layer)}"
        for theirs, ours in parts.items():
            if config.kv_layer(layer) != layer and ours[0] in _KEYS_AND_VALUES:
                continue
            names = tuple(f"{stored}.{path}.weight" for path in ours)
            tensors.append(ForeignTensor(f"{layers}.{layer}.{theirs}.weight", names))
    tensors.append(ForeignTensor(final, ("norm.weight",)))
    if not config.tied_embeddings:
        tensors.append(ForeignTensor("lm_head.weight", ("output.weight",)))
    return tensors


def hf_config(config: ModelConfig, special: SpecialIds, architecture: str, *, dtype: str) -> dict[str, Any]:
    """Content of config.json."""
    shape = {"llama": _llama_config, "openelm": _openelm_config, "hunyuan": _hunyuan_config}[architecture](config)
    return {
        **shape,
        "vocab_size": config.vocab_size,
        "bos_token_id": special.bos,
        "eos_token_id": special.stops[0] if len(special.stops) == 1 else list(special.stops),
        "pad_token_id": special.pad,
        "dtype": dtype,
        "torch_dtype": dtype,  # what transformers before 5 calls it
        "use_cache": True,
    }


def _llama_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.model_dim,
        "intermediate_size": config.ffn_dims[0],
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.query_heads[0],
        "num_key_value_heads": config.kv_heads[0],
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def _hunyuan_config(config: ModelConfig) -> dict[str, Any]:
    """Tencent's Hunyuan with a single expert is a Llama, but for layers that lend their keys and values to the next."""
    return _llama_config(config) | {
        "architectures": ["HunYuanForCausalLM"],
        "model_type": "hunyuan",
        "use_cla": True,
        "cla_share_factor": shared_run(config),
        "num_experts": 1,
        "num_shared_expert": 1,
        "moe_topk": 1,
        "use_mixed_mlp_moe": False,
        "use_qk_norm": False,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0},
    }


def _openelm_config(config: ModelConfig) -> dict[str, Any]:
    """Per-layer lists, as mlx-lm and llama.cpp's converter read them, and the pair that OpenELM's own class demands."""
    divisor = (
        FFN_MULTIPLE if all(width % FFN_MULTIPLE == 0 for width in config.ffn_dims) else math.gcd(*config.ffn_dims)
    )
    group = config.query_heads[0] // config.kv_heads[0]
    pair = linear_multipliers(config)
    return {
        "architectures": ["OpenELMForCausalLM"],
        "model_type": "openelm",
        "model_dim": config.model_dim,
        "head_dim": config.head_dim,
        "num_transformer_layers": config.num_layers,
        "num_query_heads": list(config.query_heads),
        "num_kv_heads": list(config.kv_heads),
        "num_gqa_groups": group,
        "qkv_multipliers": [head * config.head_dim / config.model_dim for head in config.query_heads]
        if pair is None
        else list(pair),
        "ffn_multipliers": [_ffn_multiplier(width, config.model_dim, divisor) for width in config.ffn_dims],
        "ffn_dim_divisor": divisor,
        "ffn_with_glu": True,
        "activation_fn_name": "swish",
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": config.qk_norm,
        "share_input_output_layers": config.tied_embeddings,
        # transformers 4 ties what does not say no, and OpenELM's own class would compute without lm_head; where there
        # is none, transformers 5 stumbles over a yes.
        **({} if config.tied_embeddings else {"tie_word_embeddings": False}),
        "rms_norm_eps": config.norm_eps,
        "rope_freq_constant": int(config.rope_base) if config.rope_base.is_integer() else config.rope_base,
        "rope_max_length": 2 * config.max_context,
        "max_context_length": config.max_context,
        "initializer_range": 0.02,
    }


def linear_multipliers(config: ModelConfig) -> tuple[float, float] | None:
    """The first and last query multiplier that give this plan's heads by OpenELM's formula; None where none do.

    OpenELM's own class takes no list of heads: it spaces the multipliers evenly between two. It also demands the same
    number of query heads for each kv head in all layers.
    """
    group = config.query_heads[0] // config.kv_heads[0]
    if any(queries != group * kvs for queries, kvs in zip(config.query_heads, config.kv_heads, strict=True)):
        return None
    for first in _candidates(config, config.query_heads[0], group):
        for last in _candidates(config, config.query_heads[-1], group):
            spaced = evenly_spaced(first, last, config.num_layers)
            if all(_heads(config, m, group) == heads for m, heads in zip(spaced, config.query_heads, strict=True)):
                return first, last
    return None


def _candidates(config: ModelConfig, heads: int, group: int) -> list[float]:
    """Two-digit multipliers that give a layer this many heads, the plain quotient first."""
    plain = round(heads * config.head_dim / config.model_dim, 2)
    reach = math.ceil(100 * group * config.head_dim / config.model_dim)
    nearby = sorted(range(-reach, reach + 1), key=abs)
    found = (round(plain + step / 100, 2) for step in nearby)
    return [multiplier for multiplier in found if multiplier > 0 and _heads(config, multiplier, group) == heads]


def _heads(config: ModelConfig, multiplier: float, group: int) -> int:
    return nearest_multiple(config.model_dim * multiplier, config.head_dim * group) // config.head_dim


def _ffn_multiplier(width: int, model_dim: int, divisor: int) -> float:
    """Two digits where they give the width, as the published configs have; the exact quotient otherwise."""
    short = round(width / model_dim, 2)
    return short if nearest_multiple(model_dim * short, divisor) == width else width / model_dim
