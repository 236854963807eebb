"""Measure packages against general-purpose deltas on pairs of versions.

    python benchmarks/deltas.py [--base FOLDER] [--json]

Adapter pairs are made on the spot: LoRA factors for all linear layers of a 135M-parameter Llama shape, moved by AdamW
on noisy gradients. With `--base FOLDER` (a version that holds base/model.safetensors in fp16) a pair of whole models
is measured too: the base, and the same with a LoRA adapter merged in.

Sizes in MB (10^6 bytes), speed in MB of target per second; every method runs in this process, one after the other.
"""

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import bsdiff4
import numpy as np
import zstandard
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from delta_updates import apply_package, build_package

_ADAPTER = "adapter/adapter_model.safetensors"
_MODEL = "base/model.safetensors"
_LEARNING_RATE = 3e-4
_MERGED_STEPS = 40
_BETAS = (0.9, 0.999)
# bsdiff sorts all suffixes of the source: about 18 bytes of memory a byte, and minutes from here on.
_BSDIFF_MAX_BYTES = 16 << 20
# At level 19 zstd needs minutes from here on.
_PATCH_FROM_19_MAX_BYTES = 64 << 20
_PATCH_FROM = "--patch-from"
_DTYPES = {"F16": "<f2", "F32": "<f4", "BF16": "<u2"}

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Shape:
    """The linear layers that get an adapter."""

    layers: int = 30
    model_dim: int = 576
    kv_dim: int = 192
    ffn_dim: int = 1536
    rank: int = 8


@dataclass(frozen=True)
class Row:
    """One method on one pair."""

    pair: str
    method: str
    bytes: int
    ratio: float
    build_mb_per_s: float
    apply_mb_per_s: float | None


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
    entries, parts, end = {}, [], 0
    for name, values in sorted(tensors.items()):
        raw = _bfloat16(values) if dtype == "BF16" else values.astype(_DTYPES[dtype])
        parts.append(raw.tobytes())
        entries[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [end, end + len(parts[-1])]}
        end += len(parts[-1])
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"".join(parts)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def merged_model(raw: bytes, shape: Shape, seed: int = 0) -> bytes:
    """Return an fp16 model file with an adapter merged into its linear layers (same header)."""
    values_offset = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:values_offset])
    factors = adapter_steps(shape, (_MERGED_STEPS,), seed)[_MERGED_STEPS]
    result = bytearray(raw)
    for layer, rows, columns in _linears(shape):
        names = (f"{layer}.", f"model.{layer}.", f"{layer}.".replace("self_attn", "attention").replace("mlp", "ffn"))
        entry = next((header[f"{name}weight"] for name in names if f"{name}weight" in header), None)
        if entry is None or entry["dtype"] != "F16" or entry["shape"] != [rows, columns]:
            raise SystemExit(f"{layer}: no fp16 tensor of {rows} x {columns} in the base; {shape} does not fit it")
        begin, end = (values_offset + offset for offset in entry["data_offsets"])
        weight = np.frombuffer(raw[begin:end], dtype="<f2").astype(np.float32).reshape(rows, columns)
        prefix = f"base_model.model.model.{layer}"
        change = factors[f"{prefix}.lora_B.weight"] @ factors[f"{prefix}.lora_A.weight"]
        result[begin:end] = (weight + 2.0 * change).astype("<f2").tobytes()
    return bytes(result)


def patch_from(old: bytes, new: bytes, level: int = 19) -> bytes:
    """Return what `zstd --long=31 --patch-from` sends: what `new` adds to a stream that has seen `old`.

    Not a dictionary: zstd looks for long-distance matches in the history of a stream, but not in a dictionary, which
    costs this method a fifth on whole models. Sizes equal those of the zstd program.
    """
    return _after_history(old, new, level)[1]


def patch_from_apply(old: bytes, delta: bytes, length: int, level: int = 19) -> bytes:
    """Undo `patch_from`; slow, because the history is made again, so nobody should take its time for zstd's."""
    history = _after_history(old, bytes(length), level)[0]
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    return unpacker.decompress(history + delta)[len(old) :]


def _after_history(old: bytes, new: bytes, level: int) -> tuple[bytes, bytes]:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(old) + len(new), window_log=_window_log(old, new), enable_ldm=True
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(old) + len(new))
    history = packer.compress(old) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return history, packer.compress(new) + packer.flush()


def _window_log(old: bytes, new: bytes) -> int:
    return max(20, min(31, (len(old) + len(new)).bit_length()))


def _timed(work: Callable[[], bytes]) -> tuple[bytes, float]:
    started = time.perf_counter()
    result = work()
    return result, max(time.perf_counter() - started, 1e-9)


def measure_ours(pair: str, path: str, old: bytes, new: bytes) -> Row:
    """Build and apply a package between two versions that hold one file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for version, raw in (("old", old), ("new", new)):
            (folder / version / path).parent.mkdir(parents=True)
            (folder / version / path).write_bytes(raw)
        built = build_package(folder / "old", folder / "new", folder / "package")
        applied = apply_package(
            folder / "old", folder / "package", folder / "out", expected_target_hash=built.target_hash
        )
    mega = len(new) / 1e6
    return Row(pair, "lamella", built.package_bytes, built.ratio, mega / built.seconds, mega / applied.seconds)


def measure_peers(pair: str, old: bytes, new: bytes) -> Iterator[Row]:
    """Run the peers that are feasible for this size, and check that each restores the target."""
    unpack = zstandard.ZstdDecompressor().decompress
    methods: list[tuple[str, Callable[[], bytes], Callable[[bytes], bytes]]] = [
        ("zstd -3 (full)", functools.partial(zstandard.ZstdCompressor(level=3).compress, new), unpack),
        ("zstd -19 (full)", functools.partial(zstandard.ZstdCompressor(level=19).compress, new), unpack),
    ]
    for level in (3, 19):
        if level > 3 and len(new) > _PATCH_FROM_19_MAX_BYTES:  # noqa: PLR2004 - zstd's default level
            continue
        build = functools.partial(patch_from, old, new, level)
        restore = functools.partial(_restore, old, len(new), level)
        methods.append((f"zstd -{level} {_PATCH_FROM}", build, restore))
    if len(old) <= _BSDIFF_MAX_BYTES:
        methods.append(("bsdiff4", lambda: bsdiff4.diff(old, new), lambda delta: bsdiff4.patch(old, delta)))
    for method, build, apply in methods:
        delta, build_s = _timed(build)
        restored, apply_s = _timed(functools.partial(apply, delta))
        if restored != new:
            raise SystemExit(f"{pair}: {method} did not restore the target")
        mega = len(new) / 1e6
        apply_speed = None if _PATCH_FROM in method else mega / apply_s
        yield Row(pair, method, len(delta), len(delta) / len(new), mega / build_s, apply_speed)


def _restore(old: bytes, length: int, level: int, delta: bytes) -> bytes:
    return patch_from_apply(old, delta, length, level)


def adapter_pairs() -> Iterator[tuple[str, bytes, bytes]]:
    """Yield (name, old file, new file) of adapters in three dtypes, 5 and 25 steps apart."""
    versions = adapter_steps(Shape(), (40, 45, 65))
    for dtype in ("F16", "BF16", "F32"):
        old = safetensors_bytes(versions[40], dtype)
        for step in (45, 65):
            yield f"adapter {dtype} +{step - 40} steps", old, safetensors_bytes(versions[step], dtype)


def _print_table(rows: list[Row]) -> None:
    print(f"{'pair':<26} {'method':<22} {'MB':>9} {'ratio':>7} {'build MB/s':>11} {'apply MB/s':>11}")
    for row in rows:
        apply_speed = "-" if row.apply_mb_per_s is None else f"{row.apply_mb_per_s:.1f}"
        print(
            f"{row.pair:<26} {row.method:<22} {row.bytes / 1e6:>9.3f} {row.ratio:>7.3f} "
            f"{row.build_mb_per_s:>11.1f} {apply_speed:>11}"
        )


def main() -> None:
    """Measure all pairs and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", type=Path, help="a version that holds base/model.safetensors in fp16")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows: list[Row] = []
    for pair, old, new in adapter_pairs():
        rows.append(measure_ours(pair, _ADAPTER, old, new))
        rows.extend(measure_peers(pair, old, new))
    if options.base:
        old = (options.base / _MODEL).read_bytes()
        new = merged_model(old, Shape())
        rows.append(measure_ours("model F16, LoRA merged", _MODEL, old, new))
        rows.extend(measure_peers("model F16, LoRA merged", old, new))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _print_table(rows)


if __name__ == "__main__":
    main()
