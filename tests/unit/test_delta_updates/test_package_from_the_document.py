"""A second reader of packages, written from delta_updates/README.md alone, with no code of the package.

If this fails while the rest passes, the package was changed without its document: see "Changing it" there.
"""

import hashlib
import json
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zstandard
from simulators import old_formats
from simulators.version_trees import safetensors_file, source_and_target, write_tree

from delta_updates import apply_package, build_package, scan_tree, tree_hash

Versions = tuple[dict[str, bytes], dict[str, bytes]]

_WIDTH = {0: 1, 1: 2, 2: 2, 3: 4, 4: 2, 5: 4, 6: 8, 7: 1, 8: 1, 9: 1, 10: 1}
_EXPONENT = {1: (10, 5), 2: (7, 8), 3: (23, 8), 9: (3, 4), 10: (2, 5)}
_DIGITS = {2: 8, 3: 5, 4: 4, 6: 3, 16: 2}
# The widths of values that had wide classes in what was read.
WIDE_SEEN: set[int] = set()


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


def read_package(
    raw: bytes, source: dict[str, bytes], version: int = 5
) -> tuple[dict[str, bytes], set[tuple[int, int, int]]]:
    """Return the target's files by path, and which (codec, kind, layout) were met."""
    package, met = _Bytes(raw), set()
    assert package.take(8) == bytes.fromhex("894C4D504B470D0A")
    found, length = package.numbers("II")
    digest = package.take(32)
    header_bytes = package.take(length)
    assert found == version
    assert hashlib.sha256(header_bytes).digest() == digest
    header = json.loads(header_bytes)
    files: dict[str, bytes] = {}
    for item in header["files"]:
        old = source[item["source"]["path"]] if item["source"] else b""
        assert version >= 5 or "joined" not in item
        old += b"".join(source[joined["path"]] for joined in item.get("joined", []))
        made = old if item["method"] == "same" else b""
        while len(made) < item["file"]["length"]:
            part, what = _read_record(package, old, version)
            made += part
            met.add(what)
        assert len(made) == item["file"]["length"]
        assert hashlib.sha256(made).hexdigest() == item["file"]["sha256"]
        files[item["file"]["path"]] = made
    assert package.at == len(raw)
    lines = "".join(f"{p}\0{len(files[p])}\0{hashlib.sha256(files[p]).hexdigest()}\n" for p in sorted(files))
    assert hashlib.sha256(lines.encode()).hexdigest() == header["target_hash"]
    return files, met


def _read_record(package: _Bytes, source: bytes, version: int) -> tuple[bytes, tuple[int, int, int]]:
    made, said, what = _made_by_record(package, source, version)
    assert version < 5 or said == hashlib.sha256(made).digest()[:16]
    return made, what


def _made_by_record(package: _Bytes, source: bytes, version: int) -> tuple[bytes, bytes, tuple[int, int, int]]:
    start = package.at
    codec, kind, layout, zero, count, length, plain_length, frame_length = package.numbers("BBBBIQII")
    parts = [package.numbers("QQ") for _ in range(count)]
    frame = package.take(frame_length)
    said = package.take(16) if version >= 5 else b""
    record = package.raw[start : package.at]
    assert package.take(16) == hashlib.sha256(record).digest()[:16]
    assert zero == 0
    old = b"".join(source[offset : offset + size] for offset, size in parts)
    if codec == 0:
        return old, said, (codec, kind, layout)
    plain = zstandard.ZstdDecompressor().decompress(frame)
    assert len(plain) == plain_length
    if codec == 3:
        made = _edit(_Bytes(plain), old)
    elif codec == 4:
        made = _low_rank(_Bytes(plain), old, kind)
    elif layout == 0:
        made = plain
    else:
        stream, count, width = _Bytes(plain), length // _WIDTH[kind], _WIDTH[kind]
        exponents = _exponents(old, kind) if codec == 2 else []
        if layout == 4:
            integers = _classes(stream, count, 8 * width, exponents)
        elif codec == 2:
            order = sorted(range(count), key=exponents.__getitem__)
            by_position = dict(zip(order, _arranged(stream, count, 8 * width, layout), strict=True))
            integers = [by_position[i] for i in range(count)]
        else:
            integers = _arranged(stream, count, 8 * width, layout)
        assert stream.at == len(stream.raw)
        how = kind if codec == 2 or kind in _EXPONENT else 0
        made = b"".join(
            _moved(int.from_bytes(old[i * width : (i + 1) * width], "little"), integer, how).to_bytes(width, "little")
            for i, integer in enumerate(integers)
        )
    assert len(made) == length
    return made, said, (codec, kind, layout)


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
        symbols = list(stream.take(count))
        values = _leading(stream, symbols, width, 8)
    return values


def _leading(stream: _Bytes, symbols: list[int], width: int, steps: int) -> list[int]:
    assert all(symbol < 2 * steps + steps * (width - steps.bit_length()) for symbol in symbols)
    shifts = [symbol // steps - 1 if symbol >= 2 * steps else 0 for symbol in symbols]
    values = [
        symbol if symbol < 2 * steps else (steps + symbol % steps) << shift
        for symbol, shift in zip(symbols, shifts, strict=True)
    ]
    for place in range(0, width - 8, 8):
        having = [i for i, shift in enumerate(shifts) if shift >= place + 8]
        for i, byte in zip(having, stream.take(len(having)), strict=True):
            values[i] += byte << place
    for bit in range(7):
        having = [i for i, shift in enumerate(shifts) if shift % 8 > bit]
        for i, one in zip(having, _bits(stream, len(having)), strict=True):
            values[i] += one << (shifts[i] - shifts[i] % 8 + bit)
    return values


def _classes(stream: _Bytes, count: int, width: int, exponents: list[int]) -> list[int]:
    (sections,) = stream.numbers("H")
    elements, groups = stream.numbers(f"{sections}I"), stream.take(sections)
    assert sum(elements) == (count if sections else 0)
    group_of = [group for group, many in zip(groups, elements, strict=True) for _ in range(many)] or [0] * count
    return _from_classes(stream, width, [256 * group + one for group, one in zip(group_of, exponents, strict=True)])


def _from_classes(stream: _Bytes, width: int, contexts: list[int]) -> list[int]:
    (number,) = stream.numbers("B")
    table = [stream.numbers("HBI") for _ in range(number)]
    firsts = [first for first, _, _ in table]
    assert firsts == sorted(set(firsts))
    assert firsts[0] == 0
    places = [
        [i for i, context in enumerate(contexts) if low <= context < high]
        for low, high in zip(firsts, [*firsts[1:], 1 << 16], strict=True)
    ]
    sparse = [j for j in range(number) if table[j][1] >= 128]
    gap_symbols = [list(stream.take(table[j][2])) for j in sparse]
    gaps = iter(_leading(stream, [symbol for symbols in gap_symbols for symbol in symbols], 32, 4))
    for j in sparse:
        at, coded = -1, []
        for _ in range(table[j][2]):
            at += next(gaps) + 1
            coded.append(places[j][at])
        places[j] = coded
    assert [len(where) for where in places] == [coded for _, _, coded in table]
    wide = [j for j in range(number) if table[j][1] % 128 >= 64]
    assert not set(wide) & set(sparse)
    WIDE_SEEN.update({width} if wide else ())
    radices = [mode % 64 for _, mode, _ in table]
    digits = [_heads(stream, len(where), radix) for where, radix in zip(places, radices, strict=True)]
    for j, radix in enumerate(radices):
        digits[j] = [d + stream.take(1)[0] if radix and d == radix - 1 else d for d in digits[j]]
    narrow = [j for j in range(number) if j not in wide]
    symbols = [digit + (j in sparse) for j in narrow for digit in digits[j]]
    values = [0] * len(contexts)
    for i, value in zip((i for j in narrow for i in places[j]), _leading(stream, symbols, width, 8), strict=True):
        values[i] = value
    tops = [(i, digit) for j in wide for i, digit in zip(places[j], digits[j], strict=True)]
    for i, top in tops:
        values[i] = top << (width - 8)
    for place in range(0, width - 8, 8):
        for (i, _), byte in zip(tops, stream.take(len(tops)), strict=True):
            values[i] += byte << place
    return values


def _heads(stream: _Bytes, count: int, radix: int) -> list[int]:
    if radix == 0:
        return list(stream.take(count))
    size = _DIGITS[radix]
    heads = stream.take(-(-count // size))
    assert all(head < radix**size for head in heads)
    return [heads[i // size] // radix ** (i % size) % radix for i in range(count)]


def _exponents(old: bytes, kind: int) -> list[int]:
    if kind in {7, 8}:
        return [(byte ^ 0x80) >> 4 for byte in old]
    width, (low, size) = _WIDTH[kind], _EXPONENT[kind]
    patterns = [int.from_bytes(old[i : i + width], "little") for i in range(0, len(old), width)]
    return [pattern >> low & ((1 << size) - 1) for pattern in patterns]


def _moved(old: int, integer: int, kind: int) -> int:
    """Return the new pattern; the old one is 0 where there is none. Kind 108 is half of a byte of kind 8."""
    if kind == 8:
        low = _moved(old % 16, integer % 16, 108) % 16
        return low + 16 * (_moved(old // 16, integer // 16, 108) % 16)
    step = -(integer + 1) // 2 if integer % 2 else integer // 2
    if kind in {7, 108}:
        return (old + step) % 256
    if kind not in _EXPONENT:
        return integer
    top = 1 << (8 * _WIDTH[kind] - 1)
    ordered = ((old + top if old < top else 2 * top - 1 - old) + step) % (2 * top)
    return ordered - top if ordered >= top else 2 * top - 1 - ordered


def _low_rank(stream: _Bytes, old: bytes, kind: int) -> bytes:
    width, (m, size) = _WIDTH[kind], _EXPONENT[kind]
    bias, (wide_m, wide_bias, form) = 2 ** (size - 1) - 1, (52, 1023, "<d") if kind == 3 else (23, 127, "<f")
    n = len(old) // width
    rank, shift, columns = stream.numbers("HhI")
    rows, drop, sign = n // columns, wide_m - m, 1 << (8 * width - 1)
    assert 1 <= rank <= 64
    assert rows * columns == n
    codes = _leading(stream, list(stream.take(rank * (rows + columns))), 32, 8)
    numbers = [-(code + 1) // 2 if code % 2 else code // 2 for code in codes]
    left = [numbers[r * rows : (r + 1) * rows] for r in range(rank)]
    right = [numbers[rank * rows + r * columns :][:columns] for r in range(rank)]

    def rounded_to_format(exact: Fraction) -> float:
        # A Fraction becomes the nearest binary64; a binary32 sum of two is rounded twice, which 53 bits make harmless.
        return struct.unpack(form, struct.pack(form, float(exact)))[0]

    predicted, contexts, above = [], [], []
    for at in range(n):
        pattern = int.from_bytes(old[at * width : (at + 1) * width], "little")
        exponent, mantissa = pattern >> m & (2**size - 1), pattern % 2**m
        if exponent == 2**size - 1:
            predicted, contexts, above = [*predicted, pattern], [*contexts, 0], [*above, False]
            continue
        product = sum(left[r][at // columns] * right[r][at % columns] for r in range(rank))
        change = rounded_to_format(Fraction(product) * Fraction(2) ** -shift)
        value = Fraction(mantissa + (2**m if exponent else 0)) * Fraction(2) ** (max(exponent, 1) - bias - m)
        value = Fraction(0) if kind != 1 and not exponent else value
        total = rounded_to_format((-value if pattern & sign else value) + Fraction(change))
        raw = int.from_bytes(struct.pack(form, total), "little")
        negative, u = raw >> (8 * struct.calcsize(form) - 1), raw % (1 << (8 * struct.calcsize(form) - 1))
        counted = (u + 2 ** (drop - 1)) // 2**drop - (wide_bias - bias) * 2**m
        g = u % 2**drop >> (drop - 13)
        near = min(max(11 - (2**12 - g if g < 2**12 else g - 2**12 + 1).bit_length() + 1, 0), 7)
        context = 4 * min(max(counted // 2**m - bias + 28 - near, 0), 31) + near // 2
        is_above = (g < 2**12) != bool(negative)
        result = counted + negative * sign
        if counted < 2**m:
            result, context, is_above = negative * sign, 0, False
        if counted >= (2**size - 1) * 2**m:
            result, context, is_above = pattern, 0, False
        predicted, contexts, above = [*predicted, result], [*contexts, context], [*above, is_above]
    made = b""
    for guess, integer, is_above in zip(predicted, _from_classes(stream, 8 * width, contexts), above, strict=True):
        step = -(integer + 1) // 2 if integer % 2 else integer // 2
        step = -step if is_above else step
        made += _moved(guess, 2 * step if step >= 0 else -2 * step - 1, kind).to_bytes(width, "little")
    assert stream.at == len(stream.raw)
    return made


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
    for dtype, form in (("F16", "<f2"), ("F32", "<f4"), ("BF16", "<u2")):
        # Weights that were zero, among others that stay as they are.
        old = draw.normal(0, 0.02, 3000).astype("<f4") * (draw.random(3000) < 0.7)
        moved = np.where(old == 0, draw.normal(0, 1e-3, 3000).astype("<f4"), old)
        for tensors, values in ((source, old), (target, moved)):
            cast = (values.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else values.astype(form)
            tensors[f"zeros.{dtype}"] = safetensors_file({"w": (dtype, cast)})
    for dtype, form in (("F16", "<f2"), ("F32", "<f4"), ("BF16", "<u2")):
        # An adapter that was merged, into some weights that are very small, infinite or no numbers as well.
        old = draw.normal(0, 0.02, (80, 72)).astype("<f4")
        old[:, :3] *= np.array([1e-4, 1e-38, 0], "<f4")
        moved = old + (draw.normal(0, 0.02, (80, 2)) @ draw.normal(0, 0.1, (2, 72))).astype("<f4")
        moved[3:6, 7] = old[3:6, 7] = [np.inf, -np.inf, np.nan]
        for tensors, values in ((source, old), (target, moved)):
            cast = (values.view("<u4") >> 16).astype("<u2") if dtype == "BF16" else values.astype(form)
            tensors[f"merged.{dtype}"] = safetensors_file({"w": (dtype, cast)})
    for dtype in ("I8", "U8", "F8_E4M3", "F8_E5M2"):
        old, shares = draw.integers(0, 256, 3000), {"some": 0.05, "most": 0.6}
        for label, share in shares.items():
            steps = np.where(draw.random(old.size) < share, draw.integers(-3, 4, old.size), 0)
            if dtype == "U8":
                steps = (old // 16 + steps) % 16 * 16 + (old + steps[::-1]) % 16 - old
            source[f"{dtype}.{label}"] = safetensors_file({"w": (dtype, old)})
            target[f"{dtype}.{label}"] = safetensors_file({"w": (dtype, (old + steps) % 256)})
    target["words"] = safetensors_file({"i": ("I64", np.arange(500)), "j": ("I32", np.arange(500) * 3)})
    return source, target


def test_the_document_is_enough_to_read_a_delta(all_kinds: Versions, tmp_path: Path) -> None:
    source, target = all_kinds
    build_package(write_tree(tmp_path / "v1", source), write_tree(tmp_path / "v2", target), tmp_path / "package")

    files, met = read_package((tmp_path / "package").read_bytes(), source)

    assert files == target
    assert {codec for codec, _, _ in met} == {0, 1, 2, 3, 4}
    assert {kind for codec, kind, _ in met if codec == 4} == {1, 2, 3}
    assert {kind for codec, kind, _ in met if codec == 2} == {1, 2, 3, 7, 8, 9, 10}
    assert {layout for codec, _, layout in met if codec == 2} == {4}
    assert sorted(WIDE_SEEN) == [16, 32]
    assert {layout for codec, _, layout in met if codec == 1} == {0, 2}


def test_the_document_is_enough_to_read_a_full_package(all_kinds: Versions, tmp_path: Path) -> None:
    target = all_kinds[1]
    build_package(None, write_tree(tmp_path / "v2", target), tmp_path / "package")

    # A full package says nothing of what its records make, and is in the oldest format that has all it needs.
    files, met = read_package((tmp_path / "package").read_bytes(), {}, version=3)

    assert files == target
    assert {codec for codec, _, _ in met} == {1}
    assert {1, 2, 3, 6} <= {kind for _, kind, layout in met if layout == 2}


@pytest.mark.parametrize(("version", "layouts"), [(1, {1, 3}), (2, {4}), (3, {4}), (4, {4})])
def test_a_package_of_an_old_format_stays_readable(tmp_path: Path, version: int, layouts: set[int]) -> None:
    source, target = old_formats.versions()
    package = old_formats.PACKAGES[version]

    files, met = read_package(package.read_bytes(), source, version=version)
    old = write_tree(tmp_path / "v1", source)
    wanted = tree_hash(scan_tree(write_tree(tmp_path / "v2", target)))
    apply_package(old, package, tmp_path / "made", expected_target_hash=wanted)

    assert files == target
    assert {layout for codec, _, layout in met if codec == 2} == layouts
    assert {(path.name, path.read_bytes()) for path in (tmp_path / "made").iterdir()} == set(target.items())


def test_an_empty_version(tmp_path: Path) -> None:
    build_package(None, write_tree(tmp_path / "empty", {}), tmp_path / "package")
    assert read_package((tmp_path / "package").read_bytes(), {}, version=3) == ({}, set())
