"""Our checkpoint as a folder that mlx-lm loads, also in few bits. Without torch, and without mlx.

MLX's affine form: `weight` packs 32 / bits numbers a uint32, the first one lowest; a group of inputs shares a scale and
a bias, and means scale * number + bias (documentation of `mlx.core.quantize`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from model.errors import ExportError
from model.export.foreign_configs import hf_config, hf_tensors, mlx_architecture
from model.export.huggingface import STORED_AS, in_dtype, plain, require_other_folder, write_companions
from model.export.layout import require_own_keys_and_values
from model.export.source import ExportSource
from model.export.tokenizer_files import special_ids
from model.export.weights import widened
from model.tensor_writer import Planned, write_planned

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from model.export.huggingface import Dtype
    from model.export.layout import ForeignTensor
    from model.export.weights import Floats, QuantizedRows

_BITS: Final = (4, 8)
_GROUP_SIZES: Final = (32, 64, 128)
_SMALLEST_SCALE: Final = np.float32(2**-24)  # of float16
_INT4_MIDDLE: Final = 8
_INT8_MIDDLE: Final = 128


class _Packed(NamedTuple):
    """Some rows of one matrix: numbers, scales and biases, each (rows, ...)."""

    values: npt.NDArray[np.uint8]
    scales: Floats
    biases: Floats


def export_mlx(
    source: Path,
    out_folder: Path,
    *,
    bits: int | None = None,
    group_size: int = 32,
    embedding_bits: int | None = None,
    dtype: Dtype = "float16",
) -> str:
    """Write a checkpoint folder, or a version's tree with its adapter merged, for mlx-lm.

    A weight that is stored in as many bits keeps its whole numbers where its groups can be said in `group_size`.

    Args:
        source: Folder of a checkpoint, or of a version (`base/`, `adapter/`).
        out_folder: Gets config.json, generation_config.json, model.safetensors and the tokenizer's files.
        bits: 4 or 8 quantises every matrix, embeddings included, whose rows the groups divide; None keeps floats.
        group_size: Inputs that share a scale: 32, 64 or 128.
        embedding_bits: Of the embedding and an output of its own; None: 8, since an int4 head changes answers.
        dtype: What floats, scales and biases are stored as, and mlx-lm computes in.

    Returns:
        `llama`, `openelm`, or `hunyuan` where layers share keys and values.

    Raises:
        ExportError: mlx-lm has no architecture or form for it.
        CheckpointError: The source is damaged, or the disk does not take the folder.
        AdapterError: The adapter does not fit the base.
    """
    if dtype not in STORED_AS or not {bits, embedding_bits} <= {None, *_BITS} or group_size not in _GROUP_SIZES:
        raise ExportError(
            f"mlx-lm takes dtype {', '.join(STORED_AS)}, bits {_BITS} or none, and groups of {_GROUP_SIZES}; got "
            f"{dtype!r}, {bits!r} and {group_size!r}"
        )
    with ExportSource(source) as opened:
        require_other_folder(opened.folder, out_folder)
        architecture = mlx_architecture(opened.config)
        if architecture != "hunyuan":
            require_own_keys_and_values(opened.config, form="mlx-lm")
        special = special_ids(opened.tokenizer_json, opened.tokenizer_settings)
        content = hf_config(opened.config, special, architecture, dtype=dtype)
        planned: list[Planned] = []
        others: dict[str, dict[str, int]] = {}
        for tensor in hf_tensors(opened.config, architecture):
            shape = tensor.shape(opened.config)
            if bits is None or len(shape) == 1 or shape[1] % group_size:
                # Where a module has no scales beside its weight, mlx-lm leaves it in floats.
                planned.append(plain(opened, tensor, dtype))
                continue
            is_vocabulary = tensor.parts[0] in {"embedding.weight", "output.weight"}
            own_bits = (embedding_bits or 8) if is_vocabulary else bits
            if "Q8_0" in {opened.kind(part) for part in tensor.parts}:
                own_bits = 8  # four bits would undo what eight were chosen for
            planned.extend(_quantized(opened, tensor, own_bits, group_size, dtype))
            if own_bits != bits:
                others[tensor.name.removesuffix(".weight")] = {"group_size": group_size, "bits": own_bits}
        if bits is not None:
            content["quantization"] = {"group_size": group_size, "bits": bits, **others}
            content["quantization_config"] = content["quantization"]
        write_planned(out_folder / "model.safetensors", planned)
        write_companions(opened, out_folder, content, special)
    return architecture


def _quantized(source: ExportSource, tensor: ForeignTensor, bits: int, group_size: int, dtype: str) -> list[Planned]:
    """The three tensors of one matrix; each is made anew from the source, so that only one is in memory."""
    rows, columns = tensor.shape(source.config)
    groups = (rows, columns // group_size)
    path = tensor.name.removesuffix(".weight")
    pieces = partial(_pieces, source, tensor, bits, group_size, dtype)
    return [
        Planned(tensor.name, "U32", (rows, columns * bits // 32), partial(pieces, "values")),
        Planned(f"{path}.scales", STORED_AS[dtype], groups, partial(pieces, "scales")),
        Planned(f"{path}.biases", STORED_AS[dtype], groups, partial(pieces, "biases")),
    ]


def _pieces(
    source: ExportSource, tensor: ForeignTensor, bits: int, group_size: int, dtype: str, wanted: str
) -> Iterator[npt.NDArray[Any]]:
    for weight, rows in tensor.pieces(source):
        kept = _regrouped(weight.quantized(rows), bits, group_size) if weight.is_quantized else None
        packed = _rounded(weight.rows(rows), bits, group_size, dtype) if kept is None else kept
        if wanted == "values":
            yield _packed(packed.values, bits)
        else:
            yield in_dtype(getattr(packed, wanted), dtype, name=tensor.name)


def _rounded(rows: Floats, bits: int, group_size: int, dtype: str) -> _Packed:
    """Each group from its smallest to its largest number in even steps."""
    groups = rows.reshape(len(rows), -1, group_size)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    steps = (1 << bits) - 1
    # Rounded as they will be stored, so that the numbers make that rounding good.
    scales = _as_stored(np.maximum((high - low) / steps, _SMALLEST_SCALE), dtype)
    biases = _as_stored(low, dtype)
    values = np.clip(np.rint((groups - biases[..., None]) / scales[..., None]), 0, steps)
    return _Packed(values.astype(np.uint8).reshape(rows.shape), scales, biases)


def _as_stored(values: Floats, dtype: str) -> Floats:
    stored = in_dtype(values, dtype, name="a scale")
    return widened(stored) if dtype == "bfloat16" else stored.astype(np.float32)


def _regrouped(rows: QuantizedRows, bits: int, group_size: int) -> _Packed | None:
    """Rows stored in few bits with MLX's biases; None where the bits or groups are others."""
    if rows.group_size is None:
        if bits != 8:  # noqa: PLR2004  (int8)
            return None
        count = rows.values.shape[1] // group_size
        scales = np.repeat(rows.scales[:, None], count, axis=1)
        values = (rows.values.astype(np.int16) + _INT8_MIDDLE).astype(np.uint8)
        return _Packed(values, scales, -_INT8_MIDDLE * scales)
    if bits != 4 or rows.group_size % group_size:  # noqa: PLR2004  (int4)
        return None
    repeats = rows.group_size // group_size
    scales = np.repeat(rows.scales, repeats, axis=1)
    zeros = -_INT4_MIDDLE * scales if rows.zeros is None else np.repeat(rows.zeros, repeats, axis=1)
    return _Packed(rows.values.astype(np.uint8), scales, zeros)


def _packed(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """The first number in the lowest bits: on little-endian bytes, 8 bits are as they are and 4 go low nibble first."""
    if bits == 8:  # noqa: PLR2004  (int8)
        return values
    return np.ascontiguousarray(values[:, 0::2] | (values[:, 1::2] << 4))
