"""Our checkpoint as a GGUF file, for llama.cpp; written without torch, one tensor in memory at a time.

Uniform plans become the architecture `llama`, layered ones `deci`, those with normalised queries and keys `openelm`.
Key and tensor names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from model.errors import ExportError
from model.export.gguf_encoding import BLOCK, BLOCK_BYTES, encode, repack
from model.export.gguf_tokenizer import GGUFTokenizer, describe_tokenizer
from model.export.layout import ForeignTensor, is_uniform, require_own_keys_and_values
from model.export.source import ExportSource
from model.files import replace_durably

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from model.config import ModelConfig

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "stored"]
# llama.cpp's number for what most tensors of a file are.
_FILE_TYPES: Final = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32, "stored": 1024}
_QUANTIZATION_VERSION: Final = 2
_LLAMA: Final = {
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
}
_SHARED: Final = {
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate_proj": "ffn_gate",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}
_OPENELM: Final = {
    "attention.o_proj": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
}


def export_gguf(source: Path, out_file: Path, *, quantization: Quantization = "q8_0") -> str:
    """Write a checkpoint folder, or a version's tree with its adapter merged, as one GGUF file.

    A weight that is stored in few bits keeps its whole numbers: int8 per channel in q8_0, int4 in groups of a multiple
    of 32 in q4_0 or q4_1. Norms stay float32; a matrix whose rows are no multiple of 32 stays float16; with q4_0 an
    embedding stored in floats is q8_0, since an int4 head changes answers.

    Args:
        source: Folder of a checkpoint, or of a version (`base/`, `adapter/`).
        out_file: Replaced atomically; the same source gives the same bytes.
        quantization: What matrices are stored as; `stored`: each as the source has it.

    Returns:
        The architecture in the file: `llama`, `deci` or `openelm`.

    Raises:
        ExportError: GGUF cannot express the model or its tokenizer, or the package `gguf` is missing.
        CheckpointError: The source is damaged, or the disk does not take the file.
        AdapterError: The adapter does not fit the base.
    """
    if quantization not in get_args(Quantization):
        raise ExportError(f"no GGUF quantization {quantization!r}; choose {', '.join(get_args(Quantization))}")
    gguf = gguf_package()
    with ExportSource(source) as opened:
        config = opened.config
        architecture = gguf_architecture(config)
        tokenizer = describe_tokenizer(opened.tokenizer_json, opened.tokenizer_settings, config.vocab_size)
        writer = gguf.GGUFWriter(None, architecture)
        writer.add_quantization_version(_QUANTIZATION_VERSION)
        writer.add_file_type(_FILE_TYPES[quantization])
        _add_shape(writer, config, architecture)
        _add_tokenizer(writer, tokenizer)
        tensors = gguf_tensors(config)
        kinds = {tensor.name: _kind(opened, tensor, quantization) for tensor in tensors}
        for tensor in tensors:
            _announce(gguf, writer, tensor, config, kinds[tensor.name])

        def write(temporary: Path) -> None:
            with closing(writer):
                writer.write_header_to_file(temporary)
                writer.write_kv_data_to_file()
                writer.write_ti_data_to_file()
                for tensor in tensors:
                    writer.write_tensor_data(_encoded(opened, tensor, kinds[tensor.name]))

        replace_durably(out_file, write)
    return architecture


def gguf_architecture(config: ModelConfig) -> str:
    """llama.cpp's name for what computes this shape.

    Raises:
        ExportError: None does.
    """
    require_own_keys_and_values(config, form="GGUF")
    if not config.qk_norm:
        # llama.cpp's llama takes layer 0's heads and widths for all layers; deci is the same with a shape a layer.
        return "llama" if is_uniform(config) else "deci"
    if not config.tied_embeddings:
        raise ExportError(
            "output.weight: llama.cpp's openelm architecture has no output of its own, only the tied embedding; train "
            "this model with tied_embeddings, or export with --output-format hf or mlx"
        )
    return "openelm"


def gguf_tensors(config: ModelConfig) -> list[ForeignTensor]:
    """The tensors of the file of `gguf_architecture`; shared layers stand once for every layer that runs them."""
    tensors = [ForeignTensor("token_embd.weight", ("embedding.weight",))]
    openelm = config.qk_norm
    for layer in range(config.num_layers):
        ours, theirs = f"layers.{config.weight_layer(layer)}", f"blk.{layer}"
        if openelm:
            qkv = tuple(f"{ours}.attention.{name}_proj.weight" for name in "qkv")
            tensors.append(ForeignTensor(f"{theirs}.attn_qkv.weight", qkv))
        for path, name in (_SHARED | (_OPENELM if openelm else _LLAMA)).items():
            # llama.cpp turns pairs of neighbours in `llama` and `deci`, halves of a head in `openelm`.
            interleaved = name in {"attn_q", "attn_k"}
            tensors.append(
                ForeignTensor(f"{theirs}.{name}.weight", (f"{ours}.{path}.weight",), interleaved=interleaved)
            )
    tensors.append(ForeignTensor("output_norm.weight", ("norm.weight",)))
    if not config.tied_embeddings:
        tensors.append(ForeignTensor("output.weight", ("output.weight",)))
    return tensors


def _kind(source: ExportSource, tensor: ForeignTensor, quantization: str) -> str:
    """GGUF's name of the type that a tensor is written as."""
    shape = tensor.shape(source.config)
    if len(shape) == 1:
        return "F32"
    kind = quantization.upper()
    stored = {source.kind(part) for part in tensor.parts}
    if len(stored) == 1 and (quantization == "stored" or (kind == "Q4_0" and stored <= {"Q4_0", "Q4_1", "Q8_0"})):
        # Rounding what was rounded already would lose more than either.
        kind = stored.pop()
    elif quantization == "stored":
        kind = "F16"
    elif kind == "Q4_0" and "Q8_0" in stored:
        kind = "Q8_0"  # four bits would undo what eight were chosen for
    elif kind == "Q4_0" and tensor.name in {"token_embd.weight", "output.weight"}:
        kind = "Q8_0"
    return "F16" if kind.startswith("Q") and shape[-1] % BLOCK else kind


def _add_shape(writer: Any, config: ModelConfig, architecture: str) -> None:  # noqa: ANN401  (gguf has no types)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.model_dim)
    writer.add_vocab_size(config.vocab_size)
    for values, add in (
        (config.ffn_dims, writer.add_feed_forward_length),
        (config.query_heads, writer.add_head_count),
        (config.kv_heads, writer.add_head_count_kv),
    ):
        add(values[0] if architecture == "llama" else list(values))
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_tokenizer(writer: Any, tokenizer: GGUFTokenizer) -> None:  # noqa: ANN401  (gguf has no types)
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
    else:
        writer.add_token_merges(tokenizer.merges)
    for name, number in tokenizer.token_ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_space_prefix(tokenizer.add_space_prefix)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _announce(gguf: Any, writer: Any, tensor: ForeignTensor, config: ModelConfig, kind: str) -> None:  # noqa: ANN401
    shape = tensor.shape(config)
    row_bytes = shape[-1] * BLOCK_BYTES[kind] // BLOCK
    byte_shape = (*shape[:-1], row_bytes)
    writer.add_tensor_info(
        tensor.name, byte_shape, np.dtype(np.uint8), math.prod(byte_shape), gguf.GGMLQuantizationType[kind]
    )


def _encoded(source: ExportSource, tensor: ForeignTensor, kind: str) -> npt.NDArray[np.uint8]:
    shape = tensor.shape(source.config)
    whole = np.empty(math.prod(shape) * BLOCK_BYTES[kind] // BLOCK, dtype=np.uint8)
    begin = 0
    for weight, rows in tensor.pieces(source):
        packed = repack(weight.quantized(rows), kind) if weight.is_quantized else None
        piece = encode(weight.rows(rows), kind, name=weight.name) if packed is None else packed
        whole[begin : begin + piece.size] = piece.reshape(-1)
        begin += piece.size
    return whole


def gguf_package() -> Any:  # noqa: ANN401  (gguf has no types)
    """The package `gguf`.

    Raises:
        ExportError: It is not installed.
    """
    try:
        import gguf  # noqa: PLC0415  (only those who write GGUF files need the package)
    except ImportError as error:
        raise ExportError("writing GGUF files needs the package gguf; run `pip install gguf`") from error
    return gguf
