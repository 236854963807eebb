"""Two versions as small as they can be that still use every way to make a file of a package."""

import json
from typing import Any

import numpy as np


def tiny_versions() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the files of two versions by path."""
    draw = np.random.default_rng(0)
    base = draw.normal(0, 0.05, (12, 16))
    moved = base * (1 + draw.normal(0, 0.02, base.shape))
    sparse = np.where(draw.integers(0, 10, base.shape) == 0, base * 1.01, base)
    codes = draw.integers(0, 255, 300)
    # An adapter was merged into it; smaller matrices have no codec of their own.
    weights = draw.normal(0, 0.05, (64, 64)).astype("<f2")
    merged = weights + draw.normal(0, 0.01, (64, 1)) * draw.normal(0, 0.2, (1, 64))
    old: list[tuple[str, str, Any]] = [
        ("a", "F16", base.astype("<f2")),
        ("b", "F32", base.astype("<f4")),
        ("c", "BF16", (base.astype("<f4").view("<u4") >> 16).astype("<u2")),
        ("d", "I8", codes.astype("u1")),
        ("e", "U8", codes.astype("u1")),
        ("f", "I64", codes[:20].astype("<i8")),
        ("g", "F8_E4M3", codes.astype("u1")),
        ("h", "F16", base.astype("<f2")),
        ("i", "F32", base.astype("<f4")),
        ("j", "F16", weights),
    ]
    changes = (
        moved,
        moved,
        moved,
        (codes + 1) % 256,
        codes ^ (codes % 7 == 0),
        codes[:20] + 1,
        codes,
        base,
        sparse,
        merged,
    )
    new = [(name, dtype, _cast(dtype, values)) for (name, dtype, _), values in zip(old, changes, strict=True)]
    # Two change places, and one is new: an in-place apply must not overwrite what it needs.
    new[7], new[0] = ("h", "F16", new[0][2]), ("a", "F16", old[7][2])
    new.append(("new", "F16", moved[:3].astype("<f2")))
    words = "\n".join(f"token {n * 7919 % 109}" for n in range(60)).encode()
    noise = draw.bytes(300)
    source = {"base/config.json": b'{"dim": 16}', "base/m.safetensors": _tensors(old), "base/t.json": words, "x": noise}
    target = source | {
        "base/m.safetensors": _tensors(new),
        "base/t.json": words.replace(b"token 7", b"sign 77") + b"\nmore",
        "y/renamed": noise,
        "empty": b"",
        "notes": words[:90],
    }
    del target["x"]
    return source, target


def _cast(dtype: str, values: Any) -> Any:  # noqa: ANN401 - arrays of any kind
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype({"F16": "<f2", "F32": "<f4", "I64": "<i8"}.get(dtype, "u1"))


def _tensors(tensors: list[tuple[str, str, Any]]) -> bytes:
    header: dict[str, object] = {}
    values = b""
    for name, dtype, array in tensors:
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [len(values), len(values) + len(raw)],
        }
        values += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + values
