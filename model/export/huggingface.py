"""Our checkpoint as a Hugging Face folder: transformers' Llama where that computes it, else OpenELM. Without torch."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, cast, get_args

import numpy as np

from model.errors import ExportError
from model.export.foreign_configs import OPENELM_EPS, hf_architecture, hf_config, hf_tensors
from model.export.gguf_encoding import bfloat16_bits
from model.export.layout import ForeignTensor, require_own_keys_and_values
from model.export.sentencepiece_file import sentencepiece_model
from model.export.source import ExportSource
from model.export.tokenizer_files import SpecialIds, special_ids, write_tokenizer
from model.files import replace_durably, write_text
from model.tensor_writer import Planned, write_planned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Any

    import numpy.typing as npt


Dtype = Literal["float32", "float16", "bfloat16"]
STORED_AS: Final[Mapping[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def export_hf(source: Path, out_folder: Path, *, dtype: Dtype = "float16") -> str:
    """Write a checkpoint folder, or a version's tree with its adapter merged, as a Hugging Face folder.

    A uniform plan becomes `LlamaForCausalLM`. Any other becomes `OpenELMForCausalLM`, its shared layers written out:
    mlx-lm and llama.cpp's converter read every such plan, OpenELM's own class those whose heads `linear_multipliers`
    finds (it refuses the others).

    Args:
        source: Folder of a checkpoint, or of a version (`base/`, `adapter/`).
        out_folder: Gets config.json, generation_config.json, model.safetensors and the tokenizer's two files; of a
            SentencePiece vocabulary tokenizer.model too.
        dtype: What the weights are stored as.

    Returns:
        `llama` or `openelm`.

    Raises:
        ExportError: Neither architecture computes the model, or a weight does not fit float16.
        CheckpointError: The source is damaged, or the disk does not take the folder.
        AdapterError: The adapter does not fit the base.
    """
    if dtype not in STORED_AS:
        raise ExportError(f"no dtype {dtype!r} for a Hugging Face folder; choose {', '.join(get_args(Dtype))}")
    with ExportSource(source) as opened:
        config = opened.config
        require_own_keys_and_values(config, form="a Hugging Face folder")
        require_other_folder(opened.folder, out_folder)
        architecture = hf_architecture(config)
        if architecture == "openelm" and config.norm_eps != OPENELM_EPS:
            raise ExportError(
                f"norm_eps is {config.norm_eps:g}, OpenELM's class computes with {OPENELM_EPS:g} whatever its config "
                "says; export as gguf or mlx, or train the model with that norm_eps"
            )
        special = special_ids(opened.tokenizer_json, opened.tokenizer_settings)
        write_planned(
            out_folder / "model.safetensors",
            [plain(opened, tensor, dtype) for tensor in hf_tensors(config, architecture)],
        )
        write_companions(opened, out_folder, hf_config(config, special, architecture, dtype=dtype), special)
    return architecture


def require_other_folder(folder: Path, out_folder: Path) -> None:
    """Refuse a folder that would overwrite itself.

    Raises:
        ExportError: So it is.
    """
    if folder.resolve() == out_folder.resolve():
        raise ExportError(f"{folder} would be overwritten by its own export; choose another folder")


def plain(source: ExportSource, tensor: ForeignTensor, dtype: str) -> Planned:
    """A tensor to write in one of the float dtypes."""
    return Planned(tensor.name, STORED_AS[dtype], tensor.shape(source.config), partial(_pieces, source, tensor, dtype))


def write_companions(source: ExportSource, out_folder: Path, config: Mapping[str, Any], special: SpecialIds) -> None:
    """Write what stands beside the weights; config.json last.

    Raises:
        CheckpointError: This disk does not take it.
        ExportError: tokenizer.json is malformed.
    """
    sentencepiece = sentencepiece_model(source.tokenizer_json, source.tokenizer_settings, source.config.vocab_size)
    if sentencepiece is not None:
        replace_durably(out_folder / "tokenizer.model", lambda file: cast("None", file.write_bytes(sentencepiece)))
    # llama.cpp begins a SentencePiece text with a token of its own unless the folder says whether.
    is_silent = sentencepiece is not None and not json.loads(source.tokenizer_json).get("post_processor")
    write_tokenizer(source, out_folder, defaults={"add_bos_token": False} if is_silent else {})
    generation = {"bos_token_id": special.bos, "eos_token_id": list(special.stops), "pad_token_id": special.pad}
    write_text(out_folder / "generation_config.json", _json(generation))
    write_text(out_folder / "config.json", _json(config))


def _pieces(source: ExportSource, tensor: ForeignTensor, dtype: str) -> Iterator[npt.NDArray[Any]]:
    for chunk in tensor.chunks(source):
        yield in_dtype(chunk, dtype, name=tensor.name)


def in_dtype(values: npt.NDArray[np.float32], dtype: str, *, name: str) -> npt.NDArray[Any]:
    """Float32 as a float dtype, bfloat16 as its bits.

    Raises:
        ExportError: A value is too large for float16.
    """
    if dtype == "bfloat16":
        return bfloat16_bits(values)
    with np.errstate(over="ignore"):
        result = values.astype("<f2" if dtype == "float16" else "<f4")
    if not np.isfinite(result).all():
        raise ExportError(f"{name} has values beyond float16's range; export it as bfloat16 or float32")
    return result


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in content.items() if value is not None}, indent=2) + "\n"
