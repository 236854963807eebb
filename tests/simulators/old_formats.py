"""Two versions whose packages in formats 1 to 4 were kept, each written before the next format existed."""

import hashlib
import json
from pathlib import Path

PACKAGES = {number: Path(__file__).with_name(f"format_{number}.package") for number in (1, 2, 3, 4)}
# Elements, how many of 128 moved, how far.
_SHARES = {"some": (6000, 60, 1), "spread": (500, 128, 60), "flat": (500, 128, 1 << 15)}
_WIDTHS = {"F16": 2, "BF16": 2, "F32": 4}


def versions() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return source and target by path; no library's random numbers, so that they are the same for ever."""
    notes = "\n".join(_draw(f"note {i}").hex() for i in range(60)).encode()
    source, target = {"notes.txt": notes}, {"notes.txt": notes[:900] + b"more" + notes[950:]}
    for dtype, width in _WIDTHS.items():
        for label, (count, share, spread) in _SHARES.items():
            path = f"{label}.{dtype}.safetensors"
            draws = [int.from_bytes(_draw(f"{path}{i}"), "little") for i in range(count)]
            old = [_weight(draw, width) for draw in draws]
            moves = [(draw >> 64) % (2 * spread + 1) - spread if (draw >> 128) % 128 < share else 0 for draw in draws]
            new = [(one + move) % (1 << (8 * width)) for one, move in zip(old, moves, strict=True)]
            source[path], target[path] = (_file(dtype, width, values) for values in (old, new))
    source["words"] = _file("I64", 8, [])
    target["words"] = _file("I64", 8, list(range(500)))
    return source, target


def _draw(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _weight(draw: int, width: int) -> int:
    """Return a pattern with some exponents, both signs and any mantissa."""
    exponent = {2: 8, 4: 118}[width] + (draw >> 40) % 5
    return ((draw >> 60) % 2 << (8 * width - 1)) | exponent << {2: 10, 4: 23}[width] | draw % (1 << 8 * width - 6 >> 3)


def _file(dtype: str, width: int, values: list[int]) -> bytes:
    raw = b"".join(value.to_bytes(width, "little") for value in values)
    text = json.dumps({"w": {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, len(raw)]}}).encode()
    return len(text).to_bytes(8, "little") + text + raw
