"""The container: how a package's bytes are laid out, written and read. README.md describes it byte by byte.

Reading is bounded before it is done: the header by its length field and MAX_HEADER_BYTES, a record by
MAX_RECORD_BYTES, what a record makes by the length its file still lacks.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from delta_updates.codecs import MAX_CHUNK_BYTES, MAX_PLAIN_BYTES, CodecName, ElementKind, Encoded
from delta_updates.codecs.layouts import Layout
from delta_updates.disk import WritableFile
from delta_updates.errors import IntegrityError, PackageFormatError
from delta_updates.manifest import (
    MAX_FILES,
    FileEntry,
    Sha256,
    canonical_json,
    check_distinct,
    summary_of,
    tree_hash,
)
from delta_updates.reading import RandomReader

MAGIC = b"\x89LMPKG\r\n"
FORMAT_VERSION = 5
# Builders write the oldest format that has what a package needs: every device reads a full package.
FULL_FORMAT = 3
MAX_HEADER_BYTES = 4 << 20
MAX_PARTS = 1 << 16
MAX_JOINED = 256
# zstd's own bound for what it cannot compress (n + n/256 + 64), rounded up.
MAX_FRAME_BYTES = MAX_PLAIN_BYTES + MAX_PLAIN_BYTES // 128

# What devices may still be sent, and the last codec, kind and layout that each format knows.
_READABLE: dict[int, tuple[CodecName, ElementKind, Layout]] = {
    1: (CodecName.PATCH, ElementKind.WORDS8, Layout.LEADING),
    2: (CodecName.PATCH, ElementKind.FLOAT8_E5M2, Layout.CLASSES),
    FULL_FORMAT: (CodecName.PATCH, ElementKind.FLOAT8_E5M2, Layout.CLASSES),
    4: (CodecName.LOW_RANK, ElementKind.FLOAT8_E5M2, Layout.CLASSES),
    FORMAT_VERSION: (max(CodecName), max(ElementKind), max(Layout)),
}

_PRELUDE = struct.Struct("<8sII32s")
_HEAD = struct.Struct("<BBBBIQII")
_PART = struct.Struct("<QQ")
_DIGEST_BYTES = 16
_FIRST_WITH_MADE = 5

Method = Literal["same", "tensors", "patch", "full"]
_CODECS_OF_METHOD: dict[Method, frozenset[CodecName]] = {
    "same": frozenset(),
    "tensors": frozenset({CodecName.SAME, CodecName.DIFFERENCE, CodecName.LOW_RANK, CodecName.FULL}),
    "patch": frozenset({CodecName.PATCH}),
    "full": frozenset({CodecName.FULL}),
}


class PackagedFile(BaseModel):
    """How one file of the target is made.

    `same`: it is the source's file, perhaps under another name. `tensors`: chunk by chunk from the source's file, and
    from those in `joined` (format 5), which follow it as if all were one. `patch`: edits to the source's file. `full`:
    from the package alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: FileEntry
    method: Method
    source: FileEntry | None
    joined: Annotated[tuple[FileEntry, ...], Field(max_length=MAX_JOINED)] = ()

    @property
    def sources(self) -> tuple[FileEntry, ...]:
        """The source's files that it is made from, in the order in which offsets count through them."""
        return (self.source, *self.joined) if self.source else ()

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.joined and self.method != "tensors":
            raise ValueError(f"method {self.method!r} with several sources")
        if (self.source is None) != (self.method == "full"):
            raise ValueError(f"method {self.method!r} and its source do not fit")
        content = (self.file.length, self.file.sha256)
        if self.method == "same" and self.source and (self.source.length, self.source.sha256) != content:
            raise ValueError("method 'same' with a source of other content")
        return self


class PackageHeader(BaseModel):
    """What a package makes from what; hashes are tree hashes, `source_hash` is None for a full package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_hash: Sha256 | None
    target_hash: Sha256
    files: Annotated[tuple[PackagedFile, ...], Field(max_length=MAX_FILES)]

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        paths = [packaged.file.path for packaged in self.files]
        check_distinct(paths)
        if paths != sorted(paths):
            raise ValueError("files are not sorted by path")
        if self.target_hash != tree_hash(packaged.file for packaged in self.files):
            raise ValueError("target_hash does not follow from the files")
        if self.source_hash is None and any(packaged.source for packaged in self.files):
            raise ValueError("a full package must not need a source")
        return self

    @property
    def format(self) -> int:
        """The format that a builder writes it in."""
        return FULL_FORMAT if self.source_hash is None else FORMAT_VERSION

    @property
    def has_made(self) -> bool:
        """Whether its records say what they make."""
        return self.format >= _FIRST_WITH_MADE

    @property
    def target_bytes(self) -> int:
        """Bytes of the whole target."""
        return sum(packaged.file.length for packaged in self.files)


@dataclass(frozen=True, slots=True)
class Part:
    """A range of the source's file, or of all that are joined."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Record:
    """Makes the next `length` bytes of a file: with this codec, from these parts of the source, joined.

    `made` is the beginning of their SHA-256 (`hash_of_made`); empty in a package that has none (formats 1 to 4).
    """

    codec: CodecName
    kind: ElementKind
    length: int
    parts: tuple[Part, ...]
    encoded: Encoded
    made: bytes = b""

    @property
    def length_in_package(self) -> int:
        """How many bytes `to_bytes` returns."""
        varying = len(self.parts) * _PART.size + len(self.encoded.frame) + len(self.made)
        return _HEAD.size + varying + _DIGEST_BYTES

    def to_bytes(self) -> bytes:
        """Return the record as it lies in a package."""
        encoded = self.encoded
        head = _HEAD.pack(
            self.codec,
            self.kind,
            encoded.layout,
            0,
            len(self.parts),
            self.length,
            encoded.plain_length,
            len(encoded.frame),
        )
        parts = b"".join(_PART.pack(part.offset, part.length) for part in self.parts)
        body = head + parts + encoded.frame + self.made
        return body + hashlib.sha256(body).digest()[:_DIGEST_BYTES]


def hash_of_made(pieces: Iterable[bytes]) -> bytes:
    """Return what a record says of the bytes that it makes."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()[:_DIGEST_BYTES]


def _canonical(header: PackageHeader) -> bytes:
    # No file that is made from one says that none follow it: that was not there before format 5.
    return canonical_json(header.model_dump(mode="json", exclude_defaults=True))


def write_header(stream: WritableFile, header: PackageHeader) -> int:
    """Write what stands before the records; return its length."""
    raw = _canonical(header)
    prelude = _PRELUDE.pack(MAGIC, header.format, len(raw), hashlib.sha256(raw).digest())
    stream.write(prelude + raw)
    return len(prelude) + len(raw)


class PackageReader:
    """Reads one package front to back; a context manager.

    Attributes:
        header: What the package makes from what, checked.
        format: Which one it is written in.
        position: Where the next record begins.
        fingerprint: Tells packages apart by header and length (hex); their records are not read for it.

    Raises:
        PackageFormatError: Not a package, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self._reader = RandomReader(path)
        self.position = 0
        try:
            self.header = self._read_header()
            self._first_record = self.position
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def records(self, packaged: PackagedFile) -> Iterator[Record]:
        """Yield the records of the next file, which together make exactly its length."""
        missing = 0 if packaged.method == "same" else packaged.file.length
        while missing:
            record = self._read_record(packaged, missing)
            missing -= record.length
            yield record

    def rewind(self) -> None:
        """Go back to the first record."""
        self.position = self._first_record

    def record_at(self, position: int, packaged: PackagedFile, missing: int) -> Record:
        """Return the record at `position`, which belongs to a file that lacks so many bytes there."""
        self.position = position
        return self._read_record(packaged, missing)

    def sha256(self) -> str:
        """Return the SHA-256 of the whole package in hex."""
        return self._reader.sha256()

    def finish(self) -> None:
        """Refuse bytes after the last record: they could hide what a hash of the package would not explain."""
        if self.position != self._reader.length:
            raise PackageFormatError(f"{self._reader.length - self.position} byte(s) after the package's end")

    def _take(self, length: int) -> bytes:
        try:
            taken = self._reader.read_at(self.position, length)
        except IntegrityError as error:
            raise PackageFormatError(f"package is cut off: {error}") from error
        self.position += length
        return taken

    def _read_header(self) -> PackageHeader:
        prelude = self._take(_PRELUDE.size)
        magic, version, length, digest = _PRELUDE.unpack(prelude)
        self.fingerprint = hashlib.sha256(prelude + self._reader.length.to_bytes(8, "little")).hexdigest()
        if magic != MAGIC or version not in _READABLE:
            raise PackageFormatError(f"not a package of format {[*_READABLE]}: magic {magic!r}, format {version}")
        self.format = int(version)
        self._last = _READABLE[version]
        if length > MAX_HEADER_BYTES:
            raise PackageFormatError(f"header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
        raw = self._take(length)
        if hashlib.sha256(raw).digest() != digest:
            raise PackageFormatError("header is damaged: its hash differs")
        try:
            header = PackageHeader.model_validate_json(raw)
        except ValidationError as error:
            raise PackageFormatError(f"header is not valid: {summary_of(error)}") from error
        # One text per meaning: a name listed twice inside an object would be read differently by another parser.
        if _canonical(header) != raw:
            raise PackageFormatError("header is not written canonically")
        if version < FORMAT_VERSION and any(packaged.joined for packaged in header.files):
            raise PackageFormatError(f"header joins files, which format {version} does not have")
        return header

    def _read_record(self, packaged: PackagedFile, missing: int) -> Record:
        head = self._take(_HEAD.size)
        codec, kind, layout, reserved, parts, length, plain_length, frame_length = _HEAD.unpack(head)
        if reserved or parts > MAX_PARTS or plain_length > MAX_PLAIN_BYTES or frame_length > MAX_FRAME_BYTES:
            raise PackageFormatError(
                f"record asks for {parts} parts, {plain_length} bytes unpacked, {frame_length} packed; "
                f"{MAX_PARTS}, {MAX_PLAIN_BYTES} and {MAX_FRAME_BYTES} are allowed"
            )
        table, frame = self._take(parts * _PART.size), self._take(frame_length)
        made = self._take(_DIGEST_BYTES) if self.format >= _FIRST_WITH_MADE else b""
        if hashlib.sha256(head + table + frame + made).digest()[:_DIGEST_BYTES] != self._take(_DIGEST_BYTES):
            raise PackageFormatError(f"record of {packaged.file.path!r} before byte {self.position} is damaged")
        try:
            names = CodecName(codec), ElementKind(kind), Layout(layout)
        except ValueError as error:
            raise PackageFormatError(f"record names what this reader does not know: {error}") from error
        if any(name > last for name, last in zip(names, self._last, strict=True)):
            raise PackageFormatError(
                f"record of codec {codec}, kind {kind} and layout {layout}, which its format does not have"
            )
        ranges = tuple(Part(*numbers) for numbers in _PART.iter_unpack(table))
        record = Record(names[0], names[1], length, ranges, Encoded(names[2], plain_length, frame), made)
        _check_record(record, packaged, missing)
        return record


def _check_record(record: Record, packaged: PackagedFile, missing: int) -> None:
    path = packaged.file.path
    if record.codec not in _CODECS_OF_METHOD[packaged.method]:
        raise PackageFormatError(f"{path!r}: method {packaged.method!r} with a record of codec {record.codec.name}")
    if not 0 < record.length <= missing or record.length % record.kind.width:
        raise PackageFormatError(f"{path!r}: record makes {record.length} bytes where {missing} are missing")
    # Only a copy can be read and written in pieces; everything else is held in memory.
    if record.codec is not CodecName.SAME and record.length > MAX_CHUNK_BYTES:
        raise PackageFormatError(f"{path!r}: record makes {record.length} bytes; at most {MAX_CHUNK_BYTES} are allowed")
    _check_parts(record, packaged)


def _check_parts(record: Record, packaged: PackagedFile) -> None:
    path, source_length = packaged.file.path, sum(entry.length for entry in packaged.sources)
    for part in record.parts:
        if part.length == 0 or part.length % record.kind.width or part.offset + part.length > source_length:
            raise PackageFormatError(f"{path!r}: {part.length} bytes at {part.offset} of a source of {source_length}")
    total = sum(part.length for part in record.parts)
    expected = {
        CodecName.SAME: record.length,
        CodecName.DIFFERENCE: record.length,
        CodecName.LOW_RANK: record.length,
        CodecName.PATCH: source_length,
        CodecName.FULL: 0,
    }[record.codec]
    is_bounded = record.codec is not CodecName.PATCH or source_length <= MAX_CHUNK_BYTES
    if total != expected or not is_bounded:
        raise PackageFormatError(
            f"{path!r}: codec {record.codec.name} with {total} bytes of the source, not {expected}"
        )
