"""Each format in the quantisations of `lamella convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from model.errors import ExportError
from model.export.dense import write_dense
from model.export.executorch import export_executorch
from model.export.gguf import export_gguf
from model.export.huggingface import export_hf
from model.export.mlx import export_mlx
from model.quantization.convert import QuantizationOptions, quantize_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def _write_gguf(tree: Path, out: Path, quantization: str, scratch: Path, text: str | None) -> tuple[Path, str]:
    target = out / f"model-{quantization}.gguf"
    if quantization == "int4":
        # Levels that are searched for lose less than those that the format's own rounding takes.
        # Q4_0's products are the quickest; with a text, what was found with it deserves Q4_1, which holds it exactly.
        tree = _in_four_bits(tree, scratch, symmetric=text is None, text=text)
    kind = {"fp16": "f16", "int8": "q8_0", "int4": "q4_0"}[quantization]
    return target, export_gguf(tree, target, quantization=kind)  # type: ignore[arg-type]  # one of them


def _write_mlx(tree: Path, out: Path, quantization: str, scratch: Path, text: str | None) -> tuple[Path, str]:
    if quantization == "int4":
        tree = _in_four_bits(tree, scratch, symmetric=False, text=text)
    bits = {"fp16": None, "int8": 8, "int4": 4}[quantization]
    return out, export_mlx(tree, out, bits=bits)


def _write_hf(tree: Path, out: Path, *_: object) -> tuple[Path, str]:
    return out, export_hf(tree, out)


def _write_executorch(tree: Path, out: Path, quantization: str, *_: object) -> tuple[Path, str]:
    target = out / "model.pte"
    return target, export_executorch(tree, target, quantization=quantization)  # type: ignore[arg-type]  # one of them


def _in_four_bits(tree: Path, scratch: Path, *, symmetric: bool, text: str | None) -> Path:
    """The model with its adapter merged and its matrices in int4, embeddings as they are; a quantised one as it is."""
    base = tree / "base" if (tree / "base").is_dir() else tree
    if (base / "quantization.json").is_file():
        if text is not None:
            raise ExportError(f"{base} is quantised already; calibrate the base in 16 bits, or give no text")
        return tree
    if (tree / "adapter").is_dir():
        base = scratch / "merged"
        write_dense(tree, base)
    options = QuantizationOptions(bits=4, symmetric=symmetric, scale_bits=16, embedding_bits=16)
    quantize_checkpoint(base, scratch / "int4", options, calibration_text=text)
    return scratch / "int4"


# Tree, folder to fill, quantisation, scratch folder, text to calibrate int4 with -> what a runtime loads, and its
# architecture there.
WRITERS: Final[Mapping[str, Callable[[Path, Path, str, Path, str | None], tuple[Path, str]]]] = {
    "gguf": _write_gguf,
    "mlx": _write_mlx,
    "hf": _write_hf,
    "executorch": _write_executorch,
}
