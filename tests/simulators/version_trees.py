"""Small versions on disk, with every way a file of a package can be made."""

import json
from pathlib import Path

import numpy as np

_DTYPES = {"F16": "<f2", "F32": "<f4", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "u1", "U8": "u1"}
_DTYPES |= {"F8_E4M3": "u1", "F8_E5M2": "u1"}


def safetensors_file(tensors: dict[str, tuple[str, np.ndarray]], *, metadata: dict[str, str] | None = None) -> bytes:
    """Return a safetensors file of (dtype, values) by name."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    values, end = [], 0
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array, dtype=_DTYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [end, end + len(raw)]}
        values.append(raw)
        end += len(raw)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(values)


def write_tree(folder: Path, files: dict[str, bytes]) -> Path:
    """Write `files` by path under `folder`, which is made."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def source_and_target(seed: int = 0) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the files of two versions whose delta uses every method, codec, layout and many kinds."""
    draw = np.random.default_rng(seed)
    base = draw.normal(0, 0.05, (64, 96))
    dense = base * (1 + draw.normal(0, 0.01, base.shape))
    sparse = np.where(draw.random(base.shape) < 0.02, base * 1.01, base)
    counts = draw.integers(0, 1000, (40, 10))
    small = draw.normal(0, 1, 200)

    def model(moved: bool) -> bytes:
        return safetensors_file(
            {
                "dense.f16": ("F16", dense if moved else base),
                "dense.f32": ("F32", dense if moved else base),
                "dense.bf16": ("BF16", _bfloat16(dense if moved else base)),
                "counts": ("I64", counts + moved),
                "norm": ("F32", base[0]),
                "sparse.f32": ("F32", sparse if moved else base),
                "eighths": ("F8_E4M3", draw.integers(0, 255, 300) if moved else np.arange(300) % 255),
                "empty": ("F16", np.zeros((0, 7))),
                "other.shape": ("F16", small if moved else small[:100]),
            },
            metadata={"format": "pt"},
        )

    words = [f"token {number * 7919 % 1009}" for number in range(1500)]
    tokenizer = "\n".join(words).encode()
    source = {
        "base/config.json": b'{"model_dim": 96}',
        "base/model.safetensors": model(False),
        "base/tokenizer.json": tokenizer,
        "base/old_name.bin": draw.bytes(5000),
        "base/gone.txt": b"not in the next version",
    }
    target = {
        "base/config.json": b'{"model_dim": 96}',
        "base/model.safetensors": model(True),
        "base/tokenizer.json": tokenizer.replace(b"token 7", b"sign 77", 40) + b"\nmore",
        "base/renamed/new_name.bin": source["base/old_name.bin"],
        "adapter/adapter_model.safetensors": safetensors_file({"a": ("F16", base), "b": ("F32", base[:8])}),
        "adapter/empty": b"",
        "adapter/notes.txt": "grüße ∆".encode() * 30,
    }
    return source, target


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
