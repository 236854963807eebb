"""The pairs of versions that `deltas.py` measures.

Real ones are SmolLM2-135M before and after training (`tuned.py`); made-up adapters (AdamW on noisy gradients) need
neither weights nor torch.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LEARNING_RATE = 3e-4
_BETAS = (0.9, 0.999)
_DTYPES = {"F16": "<f2", "F32": "<f4", "BF16": "<u2", "I8": "i1", "U8": "u1"}
_INT8_LEVELS, _INT4_LEVELS, _INT4_GROUP = 127, 7, 32

Tensors = dict[str, NDArray[np.float32]]
# (dtype, values) by name.
Stored = dict[str, tuple[str, NDArray[np.generic]]]


@dataclass(frozen=True)
class Pair:
    """Two versions that hold one safetensors file each; made when they are needed, since some have 270 MB."""

    name: str
    load: Callable[[], tuple[bytes, bytes]]


@dataclass(frozen=True)
class Shape:
    """The linear layers that get an adapter."""

    layers: int = 30
    model_dim: int = 576
    kv_dim: int = 192
    ffn_dim: int = 1536
    rank: int = 8


def made_up_pairs() -> Iterator[Pair]:
    """Yield adapters in three dtypes, 5 and 25 steps apart."""
    versions = adapter_steps(Shape(), (40, 45, 65))
    for dtype in ("F16", "BF16", "F32"):
        for step in (45, 65):
            old, new = (safetensors_bytes(versions[at], dtype) for at in (40, step))
            yield Pair(f"made-up adapter {dtype} +{step - 40}", partial(lambda *both: both, old, new))


def real_pairs(base: Path, versions: Path) -> Iterator[Pair]:
    """Yield pairs of SmolLM2 versions in the folder `versions`, and make there what is missing.

    Args:
        base: Checkpoint folder of the model.
        versions: Where trained versions are kept.
    """
    for method, last in (("sgd", "sgd-10.F16"), ("adamw", "adamw-40.F16"), ("lora", "merged-10.F16")):
        if not (versions / last).exists():
            script = str(Path(__file__).with_name("tuned.py"))
            subprocess.run([sys.executable, script, str(base), str(versions), method], check=True, stdout=sys.stderr)
    models = (
        ("base", "adamw-5"),
        ("base", "adamw-40"),
        ("adamw-20", "adamw-40"),
        ("base", "merged-10"),
        ("base", "merged-40"),
        ("base", "sgd-10"),
    )
    for old, new in models:
        for dtype in ("F16", "BF16"):
            yield Pair(f"{old} > {new} {dtype}", partial(_read, versions, f"{old}.{dtype}", f"{new}.{dtype}"))
    for bits in (8, 4):
        for new in ("merged-40", "adamw-40"):
            yield Pair(f"base > {new} int{bits}", partial(_quantised_models, versions, "base.F16", f"{new}.F16", bits))
    for dtype in ("F32", "F16", "BF16", "int8", "int4"):
        for new in ("adapter-45", "adapter-65"):
            yield Pair(f"{new[:8]}40 > {new[8:]} {dtype}", partial(_adapters, versions, "adapter-40", new, dtype))


def _read(folder: Path, *names: str) -> tuple[bytes, bytes]:
    old, new = ((folder / name).read_bytes() for name in names)
    return old, new


def _quantised_models(folder: Path, old: str, new: str, bits: int) -> tuple[bytes, bytes]:
    before, after = (_file(_quantised(read_tensors((folder / name).read_bytes()), bits)) for name in (old, new))
    return before, after


def _quantised(stored: Stored, bits: int) -> Stored:
    """Return int8 per channel, or int4 per group of 32 inputs; vectors stay as they are."""
    result: Stored = {}
    for name, (dtype, values) in stored.items():
        if values.ndim == 2:  # noqa: PLR2004 - a matrix
            group = values.shape[1] if bits == 8 else _INT4_GROUP  # noqa: PLR2004 - of a byte
            grouped = values.astype(np.float32).reshape(values.shape[0], -1, group)
            levels, scales = _rounded(grouped, 2, bits)
            result |= _packed(name, levels.reshape(values.shape), scales.reshape(len(values), -1), bits)
        else:
            result[name] = (dtype, values)
    return result


def _adapters(folder: Path, old: str, new: str, dtype: str) -> tuple[bytes, bytes]:
    both = []
    for name in (old, new):
        tensors = {key: values for key, (_, values) in read_tensors((folder / f"{name}.F32").read_bytes()).items()}
        if dtype.startswith("int"):
            bits = int(dtype[3:])
            stored: Stored = {}
            for key, values in tensors.items():
                # One scale for each rank: a row of A, a column of B.
                levels, scales = _rounded(values, 0 if key.endswith("lora_b") else 1, bits)
                stored |= _packed(key, levels, scales, bits)
            both.append(_file(stored))
        else:
            both.append(safetensors_bytes(tensors, dtype))
    return both[0], both[1]


def _rounded(values: NDArray[np.float32], axis: int, bits: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    top = _INT8_LEVELS if bits == 8 else _INT4_LEVELS  # noqa: PLR2004 - of a byte
    scales = (np.abs(values).max(axis=axis, keepdims=True) / top).astype(np.float16)
    safe = np.where(scales == 0, 1, scales.astype(np.float32))
    return np.clip(np.rint(values / safe), -top, top).astype(np.int64), scales


def _packed(name: str, levels: NDArray[np.int64], scales: NDArray[np.float16], bits: int) -> Stored:
    if bits == 8:  # noqa: PLR2004 - of a byte
        stored = ("I8", levels.astype(np.int8))
    else:
        nibbles = (levels + 8).astype(np.uint8)
        stored = ("U8", nibbles[..., 0::2] | nibbles[..., 1::2] << np.uint8(4))
    return {name: stored, f"{name}.scales": ("F16", scales)}


def read_tensors(raw: bytes) -> Stored:
    """Return the tensors of a safetensors file; BF16 as its bit patterns."""
    start = 8 + int.from_bytes(raw[:8], "little")
    result: Stored = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = np.frombuffer(raw[start + begin : start + end], _DTYPES[entry["dtype"]])
            result[name] = (entry["dtype"], values.reshape(entry["shape"]))
    return result


def adapter_steps(shape: Shape, steps: tuple[int, ...], seed: int = 0) -> dict[int, Tensors]:
    """Return LoRA factors after each of `steps` AdamW steps: A starts uniform (Kaiming), B at zero."""
    generator = np.random.default_rng(seed)
    result: dict[int, Tensors] = {step: {} for step in steps}
    for name, rows, columns in _linears(shape):
        bound = 1 / np.sqrt(columns)
        first = {
            f"{name}.lora_A.weight": generator.uniform(-bound, bound, (shape.rank, columns)),
            f"{name}.lora_B.weight": np.zeros((rows, shape.rank)),
        }
        for key, values in first.items():
            for step, moved in _adamw(values, steps, generator):
                result[step][f"base_model.model.model.{key}"] = moved.astype(np.float32)
    return result


def _linears(shape: Shape) -> Iterator[tuple[str, int, int]]:
    dim, kv_dim, ffn_dim = shape.model_dim, shape.kv_dim, shape.ffn_dim
    attention = {"q_proj": (dim, dim), "k_proj": (kv_dim, dim), "v_proj": (kv_dim, dim), "o_proj": (dim, dim)}
    ffn = {"gate_proj": (ffn_dim, dim), "up_proj": (ffn_dim, dim), "down_proj": (dim, ffn_dim)}
    for layer in range(shape.layers):
        for part, linears in (("self_attn", attention), ("mlp", ffn)):
            for name, (rows, columns) in linears.items():
                yield f"layers.{layer}.{part}.{name}", rows, columns


def _adamw(
    start: NDArray[np.float64], steps: tuple[int, ...], generator: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    values, drift = start.copy(), generator.standard_normal(start.shape)
    mean, square = np.zeros_like(values), np.zeros_like(values)
    for step in range(1, max(steps) + 1):
        gradient = 0.3 * drift + generator.standard_normal(start.shape)
        mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
        square = _BETAS[1] * square + (1 - _BETAS[1]) * gradient**2
        direction = (mean / (1 - _BETAS[0] ** step)) / (np.sqrt(square / (1 - _BETAS[1] ** step)) + 1e-8)
        values = values - _LEARNING_RATE * (direction + 0.01 * values)
        if step in steps:
            yield step, values


def safetensors_bytes(tensors: Tensors, dtype: str) -> bytes:
    """Return a safetensors file of the tensors in F16, F32 or BF16."""
    return _file(
        {
            name: (dtype, _bfloat16(values) if dtype == "BF16" else values.astype(_DTYPES[dtype]))
            for name, values in tensors.items()
        }
    )


def _file(stored: Stored) -> bytes:
    entries, parts, end = {}, [], 0
    # The order in which the safetensors library writes: wide types first, then by name.
    for name, (dtype, values) in sorted(stored.items(), key=lambda item: (-item[1][1].itemsize, item[0])):
        parts.append(np.ascontiguousarray(values).tobytes())
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"".join(parts)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
