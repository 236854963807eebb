"""Hugging Face folders of Llamas and OpenELMs: config.json, safetensors (one file or shards), tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import torch

from model.checkpoint import stream_checkpoint
from model.errors import CheckpointError, ConfigError, ForeignModelError
from model.export.foreign_configs import hf_tensors
from model.files import read_text
from model.importers.huggingface_configs import llama_config, openelm_config
from model.tensor_file import TensorFile
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from model.config import ModelConfig

_MAX_JSON_BYTES: Final = 64 * 1024 * 1024
_MAX_SHARDS: Final = 1000


def import_huggingface(folder: Path, out_folder: Path, *, dtype: torch.dtype = torch.float16) -> ModelConfig:
    """Write the model in a Hugging Face folder as our checkpoint, a few rows of a tensor in memory at a time.

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
    architecture, config = _config(folder)
    tokenizer = _tokenizer(folder)
    with ExitStack() as stack:
        where = {_full_name(name, architecture): (file, name) for name, file in _open_shards(folder, stack).items()}
        foreign = hf_tensors(config, architecture)
        _check_names(folder, set(where), {tensor.name for tensor in foreign}, config)
        for tensor in foreign:
            file, name = where[tensor.name]
            found, shape = file.tensors[name].shape, tensor.shape(config)
            if found != shape:
                raise ForeignModelError(f"{folder}: {name} has shape {list(found)}, config.json says {list(shape)}")
        shapes = config.parameter_shapes()
        stored = {name: (dtype, shape) for name, shape in shapes.items()}
        pieces = (
            (part, rows.to(dtype))
            for tensor in foreign
            for part, begin, end in tensor.part_rows(shapes)
            for rows in where[tensor.name][0].rows(where[tensor.name][1], begin, end)
        )
        stream_checkpoint(out_folder, config, stored, pieces, tokenizer)
    return config


def _config(folder: Path) -> tuple[str, ModelConfig]:
    path = folder / "config.json"
    values = _json_object(path)
    architecture = values.get("model_type")
    reader = {"llama": llama_config, "openelm": openelm_config}.get(str(architecture))
    if reader is None:
        raise ForeignModelError(f"{path}: model_type is {architecture!r}, only 'llama' and 'openelm' are supported")
    try:
        return str(architecture), reader(values)
    except KeyError as error:
        raise ForeignModelError(f"{path} lacks {error.args[0]!r}") from error
    except (ConfigError, ForeignModelError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ForeignModelError(f"{path}: {error}") from error


def _full_name(name: str, architecture: str) -> str:
    """CoreNet writes OpenELM's tensors without the prefix that Hugging Face's class gives them."""
    has_prefix = name.startswith("transformer.") or name == "lm_head.weight"
    return name if architecture == "llama" or has_prefix else f"transformer.{name}"


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
    if "lm_head.weight" in expected:
        # OpenELM's own class saves two outputs where they are not tied, and computes with the other one.
        unknown.discard("transformer.classifier.weight")
    if config.tied_embeddings and "lm_head.weight" in unknown:
        raise ForeignModelError(
            f"{folder} says that its output is tied to the embedding and still has lm_head.weight; drop the tensor or "
            "set tie_word_embeddings to false"
        )
    if unknown:
        raise ForeignModelError(
            f"{folder} has {len(unknown)} tensors that this architecture does not have, such as {sorted(unknown)[:3]}; "
            "importing without them would give another model"
        )


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
