"""Hugging Face folders of the Llama architecture: config.json, safetensors (one file or shards), tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import torch

from model.checkpoint import write_checkpoint
from model.config import PROJECTIONS, ModelConfig, every_layer
from model.errors import CheckpointError, ConfigError, ForeignModelError
from model.tensor_file import TensorFile, read_text
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

_MAX_JSON_BYTES: Final = 64 * 1024 * 1024
_MAX_SHARDS: Final = 1000

# What each setting must be for our decoder to compute the same; an absent one has this value in transformers too.
_REQUIRED: Final[Mapping[str, tuple[Any, ...]]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
}


def import_huggingface(folder: Path, out_folder: Path, *, dtype: torch.dtype = torch.float16) -> ModelConfig:
    """Write the model in a Hugging Face folder as our checkpoint.

    Args:
        folder: As `save_pretrained` writes it, with tokenizer.json.
        out_folder: Gets config.json, model.safetensors, tokenizer.json and tokenizer_config.json.
        dtype: What the weights are stored as.

    Raises:
        ForeignModelError: Another architecture, a setting or tensor that this program does not compute, or a file is
            missing.
        CheckpointError: A file is damaged, the disk does not take it, or a weight is not finite in `dtype`.
    """
    if folder.resolve() == out_folder.resolve():
        raise ForeignModelError(f"{folder} would be overwritten by its own import; choose another folder")
    config = _config(folder)
    tokenizer = _tokenizer(folder)
    names = {ours: _their_name(ours) for ours in config.parameter_shapes()}
    with ExitStack() as stack:
        where = _open_shards(folder, stack)
        _check_names(folder, set(where), set(names.values()), config)
        tensors = {}
        for ours, shape in config.parameter_shapes().items():
            tensor = where[names[ours]].read(names[ours])
            if tuple(tensor.shape) != shape:
                raise ForeignModelError(
                    f"{folder}: {names[ours]} has shape {list(tensor.shape)}, config.json says {list(shape)}"
                )
            tensors[ours] = tensor.to(dtype)
        write_checkpoint(out_folder, config, tensors, tokenizer)
    return config


def _config(folder: Path) -> ModelConfig:
    path = folder / "config.json"
    values = _json_object(path)
    for key, allowed in _REQUIRED.items():
        if (found := values.get(key, allowed[0])) not in allowed:
            raise ForeignModelError(f"{path}: {key} is {found!r}, only {allowed[0]!r} is supported")
    try:
        layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
        return ModelConfig(
            vocab_size=values["vocab_size"],
            model_dim=values["hidden_size"],
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            query_heads=every_layer(heads, layers),
            kv_heads=every_layer(values.get("num_key_value_heads") or heads, layers),
            ffn_dims=every_layer(values["intermediate_size"], layers),
            max_context=values["max_position_embeddings"],
            rope_base=float(_rope_base(path, values)),
            norm_eps=values["rms_norm_eps"],
            tied_embeddings=values.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ForeignModelError(f"{path} lacks {error.args[0]!r}") from error
    except (ConfigError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ForeignModelError(f"{path}: {error}") from error


def _rope_base(path: Path, values: Mapping[str, Any]) -> Any:  # noqa: ANN401  (checked by ModelConfig)
    """Transformers 5 keeps it in rope_parameters, earlier ones beside rope_scaling."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ForeignModelError(f"{path}: rope_parameters is no object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ForeignModelError(f"{path} scales its rotary positions ({kind!r}), which is not supported")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ForeignModelError(f"{path} turns only a part of each head by position, which is not supported")
    return rope.get("rope_theta", values.get("rope_theta", 10_000.0))


def _tokenizer(folder: Path) -> Tokenizer:
    if not (folder / "tokenizer.json").is_file():
        # tokenizer.model alone is turned into wrong tokens in silence by common tools, so it is not guessed here.
        raise ForeignModelError(
            f"{folder} has no tokenizer.json; make one with transformers: "
            "AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)"
        )
    settings = _json_object(folder / "tokenizer_config.json")
    if (folder / "chat_template.jinja").is_file():
        settings["chat_template"] = read_text(folder / "chat_template.jinja", max_bytes=_MAX_JSON_BYTES)
    templates = settings.get("chat_template")
    if isinstance(templates, list):
        named = {entry.get("name"): entry.get("template") for entry in templates if isinstance(entry, Mapping)}
        settings["chat_template"] = named.get("default")
    try:
        return Tokenizer(read_text(folder / "tokenizer.json", max_bytes=_MAX_JSON_BYTES), settings)
    except CheckpointError as error:
        raise ForeignModelError(f"{folder}: {error}") from error


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, TensorFile]:
    """Which open file holds each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ForeignModelError(f"{index} has no weight_map of names to files")
        shards = sorted(set(weight_map.values()))
    elif (folder / "model.safetensors").is_file():
        weight_map, shards = None, ["model.safetensors"]
    else:
        raise ForeignModelError(_no_weights(folder))
    # The index is input from outside: it must not lead to a file elsewhere.
    if len(shards) > _MAX_SHARDS or any("/" in name or "\\" in name or name.startswith(".") for name in shards):
        raise ForeignModelError(f"{index} names files outside its folder, or more than {_MAX_SHARDS}")
    where: dict[str, TensorFile] = {}
    for shard in shards:
        file = stack.enter_context(TensorFile(folder / shard))
        if repeated := sorted(set(file.tensors) & set(where)):
            raise ForeignModelError(f"{folder}: {repeated[:3]} are in more than one file")
        where |= dict.fromkeys(file.tensors, file)
    if weight_map is not None and {name: file.path.name for name, file in where.items()} != weight_map:
        raise ForeignModelError(f"{index} does not describe the files beside it; download the folder again")
    return where


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            f"{folder} has only torch pickle files, which can run code when they are opened; convert them to "
            "safetensors where they came from (save_pretrained writes it) and import that"
        )
    return f"{folder} has neither model.safetensors nor model.safetensors.index.json"


def _check_names(folder: Path, found: set[str], expected: set[str], config: ModelConfig) -> None:
    if missing := sorted(expected - found):
        raise ForeignModelError(f"{folder} lacks {len(missing)} tensors, such as {missing[:3]}")
    # Old exports kept the rotary frequencies; they follow from the config.
    unknown = {name for name in found - expected if not name.endswith(".rotary_emb.inv_freq")}
    if config.tied_embeddings and "lm_head.weight" in unknown:
        raise ForeignModelError(
            f"{folder} says that its output is tied to the embedding and still has lm_head.weight; drop the tensor or "
            "set tie_word_embeddings to false"
        )
    if unknown:
        raise ForeignModelError(
            f"{folder} has {len(unknown)} tensors that a plain Llama does not have, such as {sorted(unknown)[:3]}; "
            "importing without them would give another model"
        )


def _their_name(ours: str) -> str:
    if ours in {"embedding.weight", "norm.weight", "output.weight"}:
        return {"embedding": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}[ours[:-7]] + ".weight"
    _, layer, *rest = ours.split(".")
    parts = {
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        **{f"attention.{p}": f"self_attn.{p}" for p in PROJECTIONS},
        **{f"ffn.{p}": f"mlp.{p}" for p in PROJECTIONS},
    }
    return f"model.layers.{layer}.{parts['.'.join(rest[:-1])]}.weight"


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path, max_bytes=_MAX_JSON_BYTES))
    except CheckpointError as error:
        raise ForeignModelError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ForeignModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ForeignModelError(f"{path} is no JSON object")
    return values
