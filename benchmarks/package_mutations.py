"""Packages that were tampered with knowingly: every checksum is right again, so that the damage gets past it.

A case is a number: the same number makes the same bytes, on every machine with the same zstd.
"""

import copy
import hashlib
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import zstandard

_PRELUDE = struct.Struct("<8sII32s")
_HEAD = struct.Struct("<BBBBIQII")
_PART = struct.Struct("<QQ")
_FACTORS = struct.Struct("<HhI")
_DIGEST_BYTES = 16
_FIRST_WITH_MADE = 5
_MAGIC = b"\x89LMPKG\r\n"
_NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255, 256, 4095, 4096, 65535, 65536, 1 << 20, 1 << 21, 4 << 20)
_NUMBERS += ((4 << 20) + 1, 8 << 20, (8 << 20) + 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 46, 1 << 63, (1 << 64) - 1)
_PATHS = (
    "../x",
    "../../../../../../x",
    "/x",
    "a//b",
    "a/../b",
    ".",
    "",
    "C:/x",
    "a\\b",
    "con",
    "x" * 255,
    "x" * 256,
)
_PATHS += (
    "base",
    "base/config.json",
    "BASE/CONFIG.JSON",
    "base/config.json/x",
    "a/" * 120 + "a",
    "a/" * 15 + "a",
    "é",
    "e\u0301",
    "\u202ex",
    "a\0b",
)
_WIDTHS = {0: 1, 1: 2, 2: 2, 3: 4, 4: 2, 5: 4, 6: 8, 7: 1, 8: 1, 9: 1, 10: 1}
_LEADING = 3
_LOW_RANK = 4
_MOST_MADE = 1 << 14
_MOST_UNPACKED = 1 << 20
_SCALARS = (None, True, False, -1, 1.5, "", "x", "0" * 64, "f" * 64, "F" * 64, [], {}, 10**30)


@dataclass
class RawRecord:
    """A record's fields as they are written, whether or not they make sense; `plain` replaces the frame if given."""

    codec: int
    kind: int
    layout: int
    zero: int
    length: int
    plain_length: int
    parts: list[tuple[int, int]]
    frame: bytes
    parts_said: int | None = None
    frame_length_said: int | None = None
    made: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the record with a right digest."""
        said = len(self.parts) if self.parts_said is None else self.parts_said
        frame_length = len(self.frame) if self.frame_length_said is None else self.frame_length_said
        bounds = ((self.codec, 8), (self.kind, 8), (self.layout, 8), (self.zero, 8), (said, 32), (self.length, 64))
        bounds += ((self.plain_length, 32), (frame_length, 32))
        body = _HEAD.pack(*(value % (1 << bits) for value, bits in bounds))
        body += b"".join(_PART.pack(offset % (1 << 64), length % (1 << 64)) for offset, length in self.parts)
        body += self.frame + self.made
        return body + hashlib.sha256(body).digest()[:_DIGEST_BYTES]


@dataclass
class RawPackage:
    """A package taken apart."""

    header: Any
    records: list[RawRecord] = field(default_factory=list)
    format: int = 5

    @classmethod
    def parsed(cls, raw: bytes) -> "RawPackage":
        """Take a good package apart."""
        _, number, length, _ = _PRELUDE.unpack_from(raw)
        package = cls(json.loads(raw[_PRELUDE.size : _PRELUDE.size + length]), [], number)
        position = _PRELUDE.size + length
        while position < len(raw):
            codec, kind, layout, zero, count, made, plain, frame = _HEAD.unpack_from(raw, position)
            position += _HEAD.size
            parts = list(_PART.iter_unpack(raw[position : position + count * _PART.size]))
            position += count * _PART.size
            body = raw[position : position + frame]
            position += frame
            said = raw[position : position + (_DIGEST_BYTES if number >= _FIRST_WITH_MADE else 0)]
            package.records.append(RawRecord(codec, kind, layout, zero, made, plain, parts, body, made=said))
            position += len(said) + _DIGEST_BYTES
        return package

    def to_bytes(self) -> bytes:
        """Return the package with right hashes of header and records."""
        text = json.dumps(self.header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        header = text.encode("utf-8", "surrogatepass")
        prelude = _PRELUDE.pack(_MAGIC, self.format, len(header), hashlib.sha256(header).digest())
        return prelude + header + b"".join(record.to_bytes() for record in self.records)


def mutated(packages: list[bytes], case: int, *, seed: int) -> bytes:
    """Return the package of a case: one of `packages`, changed in one to four ways."""
    draw = random.Random(seed * (1 << 40) + case)  # noqa: S311 - a case must come out the same again
    raw = draw.choice(packages)
    if _one_in(draw, 12):
        return _damaged(raw, draw)
    package = RawPackage.parsed(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        draw.choice(_MUTATIONS)(package, draw)
    if not _one_in(draw, 10):
        _make_hashes_right(package.header)
    made = package.to_bytes()
    return _damaged(made, draw) if _one_in(draw, 50) else made


def _one_in(draw: random.Random, count: int) -> bool:
    return draw.randrange(count) == 0


def _damaged(raw: bytes, draw: random.Random) -> bytes:
    """Change the bytes and leave the hashes wrong."""
    damaged = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(damaged) + 1)
        match draw.randrange(5):
            case 0:
                damaged[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del damaged[at : at + draw.choice((1, 16, 1000))]
            case 2:
                damaged[at:at] = draw.randbytes(draw.choice((1, 16, 100)))
            case 3:
                del damaged[at:]
            case _:
                other = draw.randrange(len(damaged) + 1)
                damaged[at : at + 64] = damaged[other : other + 64]
    return bytes(damaged)


def _make_hashes_right(header: Any) -> None:  # noqa: ANN401 - whatever JSON may hold
    """Let target_hash follow from the files again, as far as they are files."""
    try:
        files = header["files"]
        header["files"] = files = sorted(files, key=lambda file: file["file"]["path"])
        lines = "".join(f"{f['file']['path']}\0{f['file']['length']}\0{f['file']['sha256']}\n" for f in files)
        header["target_hash"] = hashlib.sha256(lines.encode()).hexdigest()
    except (KeyError, TypeError, UnicodeEncodeError, AttributeError):
        return


# --- the header


def _places(value: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401 - the same
    """Return every (container, key) of a JSON value."""
    inside = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in inside] + [place for _, child in inside for place in _places(child)]


def _change_header(package: RawPackage, draw: random.Random) -> None:
    places = _places(package.header)
    if not places:
        return
    container, key = draw.choice(places)
    old = container[key]
    match draw.randrange(6):
        case 0:
            container[key] = draw.choice(_SCALARS)
        case 1:
            del container[key]
        case 2:
            other, place = draw.choice(places)
            container[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else other[place : place + 1])
        case 3 if isinstance(old, int):
            container[key] = draw.choice((draw.choice(_NUMBERS), old + draw.choice((-1, 1, -8, 8)), -old))
        case 4 if isinstance(container, dict):
            container[f"{key}x"] = old
        case _:
            container[key] = draw.choice(_PATHS) if isinstance(old, str) else old


def _files(package: RawPackage) -> list[Any]:
    files = package.header.get("files") if isinstance(package.header, dict) else None
    return files if isinstance(files, list) else []


def _change_file(package: RawPackage, draw: random.Random) -> None:
    """Change how a file is made into something else that a header may say."""
    files = _files(package)
    entries = [file for file in files if isinstance(file, dict) and isinstance(file.get("file"), dict)]
    if not entries:
        return
    file, other = draw.choice(entries), draw.choice(entries)
    match draw.randrange(8):
        case 0:
            file["method"] = draw.choice(("same", "tensors", "patch", "full"))
        case 1:
            file["source"] = copy.deepcopy(draw.choice((None, file["file"], other.get("source"))))
        case 2:
            file["file"]["path"] = draw.choice(_PATHS)
        case 3:
            file["file"]["length"] = draw.choice((draw.choice(_NUMBERS), draw.randrange(5000)))
        case 4:
            file["file"]["sha256"] = f"{draw.getrandbits(256):064x}"
        case 5:
            files.append(copy.deepcopy(file) | {"file": file["file"] | {"path": f"copy-{draw.randrange(99)}"}})
        case 6:
            files.remove(file)
        case _:
            # Moves that make an in-place apply think: sources trade places.
            file["source"], other["source"] = other.get("source"), file.get("source")
            file["method"], other["method"] = other.get("method"), file.get("method")


# --- the records


def _record(package: RawPackage, draw: random.Random) -> RawRecord | None:
    return draw.choice(package.records) if package.records else None


def _change_field(package: RawPackage, draw: random.Random) -> None:
    record = _record(package, draw)
    if record is None:
        return
    match draw.randrange(9):
        case 0:
            record.codec = draw.choice((0, 1, 2, 3, 4, 5, 255))
        case 1:
            record.kind = draw.randrange(12)
        case 2:
            record.layout = draw.randrange(6)
        case 3:
            record.zero = draw.choice((0, 1, 255))
        case 4:
            record.length = draw.choice((draw.choice(_NUMBERS), abs(record.length + draw.choice((-8, -1, 1, 8)))))
        case 5:
            record.plain_length = draw.choice(
                (draw.choice(_NUMBERS), max(0, record.plain_length + draw.choice((-1, 1))))
            )
        case 6:
            record.parts_said = draw.choice((*_NUMBERS, len(record.parts) + 1))
        case 7:
            record.frame_length_said = draw.choice((*_NUMBERS, len(record.frame) + 1))
        case _:
            record.kind, record.layout = draw.randrange(11), draw.randrange(5)


def _change_parts(package: RawPackage, draw: random.Random) -> None:
    record = _record(package, draw)
    if record is None:
        return
    parts = record.parts
    match draw.randrange(6) if parts else 0:
        case 0:
            parts.insert(draw.randrange(len(parts) + 1), (draw.choice(_NUMBERS), draw.choice(_NUMBERS)))
        case 1:
            parts.remove(draw.choice(parts))
        case 2:
            at = draw.randrange(len(parts))
            parts[at] = draw.choice(_NUMBERS), parts[at][1]
        case 3:
            at = draw.randrange(len(parts))
            parts[at] = max(0, parts[at][0] + draw.choice((-8, -1, 1, 8, 64, -64))), parts[at][1]
        case 4:
            at = draw.randrange(len(parts))
            first = parts[at][1] // 2 // 8 * 8
            parts[at : at + 1] = [(parts[at][0], first), (parts[at][0] + first, parts[at][1] - first)]
        case _:
            draw.shuffle(parts)


def _change_frame(package: RawPackage, draw: random.Random) -> None:
    record = _record(package, draw)
    if record is None:
        return
    frame = bytearray(record.frame)
    match draw.randrange(6):
        case 0:
            for _ in range(draw.choice((1, 3))):
                if frame:
                    frame[draw.randrange(len(frame))] = draw.randrange(256)
        case 1:
            frame += draw.choice((b"\0", bytes(frame)))
        case 2:
            del frame[draw.randrange(len(frame) + 1) :]
        case 3:
            # A bomb: a small frame of very much, declared or not.
            size = draw.choice((1 << 16, 1 << 20, 8 << 20))
            packer = zstandard.ZstdCompressor(write_content_size=not _one_in(draw, 3))
            frame = bytearray(_bomb(packer, size))
            record.plain_length = draw.choice((size, record.plain_length, size - 1))
        case 4:
            frame[:0] = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip"
        case _:
            frame = bytearray(
                zstandard.ZstdCompressor(write_checksum=True).compress(draw.randbytes(record.plain_length % 4096))
            )
    record.frame = bytes(frame)


_BOMBS: dict[tuple[int, int], bytes] = {}


def _bomb(packer: zstandard.ZstdCompressor, size: int) -> bytes:
    made = packer.compress(bytes(4096))
    if (size, len(made)) not in _BOMBS:
        _BOMBS[size, len(made)] = packer.compress(bytes(size))
    return _BOMBS[size, len(made)]


def _unpacked(frame: bytes) -> bytearray | None:
    try:
        # What was changed before may declare terabytes, and this decoder would ask for them.
        if zstandard.get_frame_parameters(frame).content_size > _MOST_UNPACKED:
            return None
        return bytearray(zstandard.ZstdDecompressor().decompress(frame, max_output_size=_MOST_UNPACKED))
    except zstandard.ZstdError:
        return None


def _change_plain(package: RawPackage, draw: random.Random) -> None:
    """Change what a frame holds: sections, classes, symbols, edits."""
    record = _record(package, draw)
    plain = _unpacked(record.frame) if record else None
    if record is None or plain is None:
        return
    for _ in range(draw.choice((1, 1, 2, 5))):
        # What steers comes first.
        at = draw.randrange(min(len(plain), draw.choice((4, 40, 1 << 20)))) if plain else 0
        match draw.randrange(6):
            case 0:
                plain[at : at + 1] = bytes([draw.choice((0, 1, 2, 127, 128, 129, 255, draw.randrange(256)))])
            case 1:
                plain[at : at + 4] = struct.pack("<I", draw.choice(_NUMBERS) % (1 << 32))
            case 2:
                plain[at : at + 8] = struct.pack("<q", draw.choice((-1, 1)) * (draw.choice(_NUMBERS) % (1 << 63)))
            case 3:
                del plain[at : at + draw.choice((1, 4, 50))]
            case 4:
                plain[at:at] = draw.randbytes(draw.choice((1, 4, 50)))
            case _:
                plain[at:] = draw.randbytes(len(plain) - at)
    record.frame = zstandard.ZstdCompressor(level=1).compress(bytes(plain))
    if not _one_in(draw, 20):
        record.plain_length = len(plain)


def _change_layout(package: RawPackage, draw: random.Random) -> None:
    """Say the same number of values in a layout of format 1, in as many bytes as it should have."""
    record = _record(package, draw)
    width = _WIDTHS.get(record.kind) if record else None
    if record is None or width is None or record.length > _MOST_MADE:
        return
    count = record.length // width
    record.layout = draw.choice((1, 2, 3))
    plain = draw.randbytes({1: 8 * width * -(-count // 8), 2: count * width, 3: count}[record.layout])
    if record.layout == _LEADING:
        # Symbols below 16 are whole values; a few others take their rests from what is not there, or from random bytes.
        plain = bytes(symbol % draw.choice((16, 16, 17, 256)) for symbol in plain) + draw.randbytes(draw.choice((0, 9)))
    record.frame, record.plain_length = zstandard.ZstdCompressor(level=1).compress(plain), len(plain)


def _change_factors(package: RawPackage, draw: random.Random) -> None:
    """Say another rank, shift or number of columns, with as many factors as that takes, or claim that there are any."""
    records = [one for one in package.records if one.codec == _LOW_RANK] or package.records
    record = draw.choice(records) if records else None
    plain = _unpacked(record.frame) if record else None
    if record is None or plain is None or len(plain) < _FACTORS.size:
        return
    rank, shift, columns = _FACTORS.unpack_from(plain)
    match draw.randrange(4):
        case 0:
            rank = draw.choice((0, 1, 2, 8, 64, 65, (1 << 16) - 1))
        case 1:
            shift = draw.choice((-32768, -91, -90, 0, 90, 91, 32767))
        case 2:
            columns = draw.choice((*(1 << bits for bits in range(14)), draw.choice(_NUMBERS) % (1 << 32)))
        case _:
            record.codec = _LOW_RANK
    count = record.length // _WIDTHS.get(record.kind, 1)
    factors = rank * (count // columns + columns) if columns else 0
    # Symbols of small numbers, or of any; what they leave out is missing or comes from the classes.
    symbols = bytes(draw.choice((draw.randrange(16), draw.randrange(256))) for _ in range(min(factors, _MOST_MADE)))
    plain[: _FACTORS.size] = _FACTORS.pack(rank, shift, columns)
    if draw.randrange(2):
        plain[_FACTORS.size : _FACTORS.size + len(symbols)] = symbols
    record.frame, record.plain_length = zstandard.ZstdCompressor(level=1).compress(bytes(plain)), len(plain)


def _move_records(package: RawPackage, draw: random.Random) -> None:
    records = package.records
    if not records:
        return
    at, other = draw.randrange(len(records)), draw.randrange(len(records))
    match draw.randrange(5):
        case 0:
            records.pop(at)
        case 1:
            records.insert(at, replace(records[other], parts=list(records[other].parts)))
        case 2:
            records[at], records[other] = records[other], records[at]
        case 3:
            # Two for one: the same bytes from two records.
            whole = records[at]
            first = whole.length // 2 // 8 * 8
            if whole.codec == 0 and len(whole.parts) == 1 and first:
                offset, length = whole.parts[0]
                halves = ((first, offset), (length - first, offset + first))
                records[at : at + 1] = [replace(whole, length=size, parts=[(start, size)]) for size, start in halves]
        case _:
            package.format = draw.choice((0, 1, 2, 3, 3, 4, 5, (1 << 32) - 1))


_MUTATIONS: tuple[Callable[[RawPackage, random.Random], None], ...] = (
    _change_header,
    _change_file,
    _change_file,
    _change_field,
    _change_parts,
    _change_frame,
    _change_plain,
    _change_plain,
    _change_layout,
    _change_factors,
    _move_records,
)
