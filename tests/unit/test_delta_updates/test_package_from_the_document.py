"""A second reader of packages, written from delta_updates/README.md alone, with no code of the package.

If this fails while the rest passes, the package was changed without its document: see "Changing it" there.
"""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard
from simulators.version_trees import safetensors_file, source_and_target, write_tree

from delta_updates import build_package

Versions = tuple[dict[str, bytes], dict[str, bytes]]

_WIDTH = {0: 1, 1: 2, 2: 2, 3: 4, 4: 2, 5: 4, 6: 8}
_EXPONENT = {1: (10, 5), 2: (7, 8), 3: (23, 8)}


class _Bytes:
    """Bytes that are taken from the front."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, count: int) -> bytes:
        part = self.raw[self.at : self.at + count]
        assert len(part) == count
        self.at += count
        return part

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))


def read_package(raw: bytes, source: dict[str, bytes]) -> tuple[dict[str, bytes], set[tuple[int, int, int]]]:
    """Return the target's files by path, and which (codec, kind, layout) were met."""
    package, met = _Bytes(raw), set()
    assert package.take(8) == bytes.fromhex("894C4D504B470D0A")
    version, length = package.numbers("II")
    digest = package.take(32)
    header_bytes = package.take(length)
    assert version == 1
    assert hashlib.sha256(header_bytes).digest() == digest
    header = json.loads(header_bytes)
    files: dict[str, bytes] = {}
    for item in header["files"]:
        old = source[item["source"]["path"]] if item["source"] else b""
        made = old if item["method"] == "same" else b""
        while len(made) < item["file"]["length"]:
            part, what = _read_record(package, old)
            made += part
            met.add(what)
        assert len(made) == item["file"]["length"]
        assert hashlib.sha256(made).hexdigest() == item["file"]["sha256"]
        files[item["file"]["path"]] = made
    assert package.at == len(raw)
    lines = "".join(f"{p}\0{len(files[p])}\0{hashlib.sha256(files[p]).hexdigest()}\n" for p in sorted(files))
    assert hashlib.sha256(lines.encode()).hexdigest() == header["target_hash"]
    return files, met


def _read_record(package: _Bytes, source: bytes) -> tuple[bytes, tuple[int, int, int]]:
    start = package.at
    codec, kind, layout, zero, count, length, plain_length, frame_length = package.numbers("BBBBIQII")
    parts = [package.numbers("QQ") for _ in range(count)]
    frame = package.take(frame_length)
    record = package.raw[start : package.at]
    assert package.take(16) == hashlib.sha256(record).digest()[:16]
    assert zero == 0
    old = b"".join(source[offset : offset + size] for offset, size in parts)
    if codec == 0:
        return old, (codec, kind, layout)
    plain = zstandard.ZstdDecompressor().decompress(frame)
    assert len(plain) == plain_length
    if codec == 3:
        made = _edit(_Bytes(plain), old)
    elif layout == 0:
        made = plain
    else:
        made = _values(_arranged(_Bytes(plain), length // _WIDTH[kind], 8 * _WIDTH[kind], layout), codec, kind, old)
    assert len(made) == length
    return made, (codec, kind, layout)


def _bits(stream: _Bytes, count: int) -> list[int]:
    raw = stream.take(-(-count // 8))
    return [raw[i // 8] >> (7 - i % 8) & 1 for i in range(count)]


def _arranged(stream: _Bytes, count: int, width: int, layout: int) -> list[int]:
    values = [0] * count
    if layout == 1:
        for bit in range(width):
            for i, one in enumerate(_bits(stream, count)):
                values[i] += one << bit
    elif layout == 2:
        for place in range(0, width, 8):
            for i, byte in enumerate(stream.take(count)):
                values[i] += byte << place
    else:
        values = _leading(stream, count, width)
    assert stream.at == len(stream.raw)
    return values


def _leading(stream: _Bytes, count: int, width: int) -> list[int]:
    symbols = stream.take(count)
    shifts = [(symbol - 8) // 8 if symbol >= 16 else 0 for symbol in symbols]
    values = [
        symbol if symbol < 16 else (8 + symbol % 8) << shift for symbol, shift in zip(symbols, shifts, strict=True)
    ]
    for place in range(0, width - 8, 8):
        having = [i for i in range(count) if shifts[i] >= place + 8]
        for i, byte in zip(having, stream.take(len(having)), strict=True):
            values[i] += byte << place
    for bit in range(7):
        having = [i for i in range(count) if shifts[i] % 8 > bit]
        for i, one in zip(having, _bits(stream, len(having)), strict=True):
            values[i] += one << (shifts[i] - shifts[i] % 8 + bit)
    return values


def _values(integers: list[int], codec: int, kind: int, source: bytes) -> bytes:
    width = 8 * _WIDTH[kind]
    if kind >= 4:
        return b"".join(value.to_bytes(width // 8, "little") for value in integers)
    if codec == 2:
        old = [int.from_bytes(source[i : i + width // 8], "little") for i in range(0, len(source), width // 8)]
        low, size = _EXPONENT[kind]
        order = sorted(range(len(old)), key=lambda i: old[i] >> low & ((1 << size) - 1))
    else:
        old, order = [0] * len(integers), range(len(integers))
    top, new = 1 << (width - 1), [0] * len(integers)
    for integer, i in zip(integers, order, strict=True):
        step = -(integer + 1) // 2 if integer % 2 else integer // 2
        ordered = (old[i] + top if old[i] < top else 2 * top - 1 - old[i]) + step
        ordered %= 2 * top
        new[i] = ordered - top if ordered >= top else 2 * top - 1 - ordered
    return b"".join(value.to_bytes(width // 8, "little") for value in new)


def _edit(plain: _Bytes, source: bytes) -> bytes:
    (count,) = plain.numbers("I")
    edits = [plain.numbers("qqq") for _ in range(count)]
    differences = _Bytes(plain.take(sum(add for add, _, _ in edits)))
    insertions = _Bytes(plain.take(sum(insert for _, insert, _ in edits)))
    made, place = b"", 0
    for add, insert, move in edits:
        made += bytes((source[place + i] + byte) % 256 for i, byte in enumerate(differences.take(add)))
        made += insertions.take(insert)
        place += add + move
    assert plain.at == len(plain.raw)
    return made


@pytest.fixture(scope="module")
def all_kinds() -> Versions:
    """Versions whose records use every codec with every layout that a builder chooses."""
    source, target = source_and_target()
    draw = np.random.default_rng(5)
    for name, dtype, size in (("f16", "F16", 2), ("f32", "F32", 4), ("bf16", "BF16", 2)):
        old = draw.normal(0, 0.02, 3000).astype("<f4").view("<u4")
        old = old if size == 4 else (old >> 16 if dtype == "BF16" else old.view("<f4").astype("<f2").view("<u2"))
        old = old.astype(f"<u{size}")
        shares = {"some": (0.3, 1), "spread": (1, 40), "wide": (1, 120), "flat": (1, 0)}
        for label, (share, spread) in shares.items():
            flat = draw.integers(0, 256, old.size)
            steps = draw.normal(0, spread, old.size).round().astype(int) if spread else flat
            moved = (old.astype(int) + np.where(draw.random(old.size) < share, steps, 0)).astype(f"<u{size}")
            views = {"F16": "<f2", "F32": "<f4", "BF16": "<u2"}[dtype]
            source[f"{name}.{label}"] = safetensors_file({"w": (dtype, old.view(views))})
            target[f"{name}.{label}"] = safetensors_file({"w": (dtype, moved.view(views))})
    target["words"] = safetensors_file({"i": ("I64", np.arange(500)), "j": ("I32", np.arange(500) * 3)})
    return source, target


def test_the_document_is_enough_to_read_a_delta(all_kinds: Versions, tmp_path: Path) -> None:
    source, target = all_kinds
    build_package(write_tree(tmp_path / "v1", source), write_tree(tmp_path / "v2", target), tmp_path / "package")

    files, met = read_package((tmp_path / "package").read_bytes(), source)

    assert files == target
    assert {codec for codec, _, _ in met} == {0, 1, 2, 3}
    assert {kind for codec, kind, _ in met if codec == 2} == {1, 2, 3}
    assert {layout for codec, _, layout in met if codec == 2} == {1, 3}
    assert {layout for codec, _, layout in met if codec == 1} == {0, 2}


def test_the_document_is_enough_to_read_a_full_package(all_kinds: Versions, tmp_path: Path) -> None:
    target = all_kinds[1]
    build_package(None, write_tree(tmp_path / "v2", target), tmp_path / "package")

    files, met = read_package((tmp_path / "package").read_bytes(), {})

    assert files == target
    assert {codec for codec, _, _ in met} == {1}
    assert {1, 2, 3, 6} <= {kind for _, kind, layout in met if layout == 2}


def test_an_empty_version(tmp_path: Path) -> None:
    build_package(None, write_tree(tmp_path / "empty", {}), tmp_path / "package")
    assert read_package((tmp_path / "package").read_bytes(), {}) == ({}, set())
