"""Decide how each file of a target is made, and make its records chunk by chunk."""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from delta_updates.codecs import (
    CODECS,
    MAX_CHUNK_BYTES,
    MAX_CHUNK_ELEMENTS,
    MAX_DIFFERENCE_ELEMENTS,
    CodecName,
    Difference,
    ElementKind,
    Encoded,
    LowRank,
    Section,
)
from delta_updates.codecs.elements import element_kinds, patterns_of
from delta_updates.codecs.layouts import Layout
from delta_updates.manifest import FileEntry
from delta_updates.matching import Like, TensorMatcher
from delta_updates.package import PackagedFile, Part, Record, hash_of_made
from delta_updates.reading import JoinedReader, OldBytes, RandomReader
from delta_updates.runs import equal_runs, moved_runs
from delta_updates.source_tree import SourceTree, layout_at
from delta_updates.tensor_file import TensorFile
from delta_updates.workers import in_order

# Small tensors share a record up to this many; a reader allows more (package.MAX_PARTS).
_MAX_PARTS = 4096
# Tensors of as many elements have a record of their own: each moves in its own way, and is large enough to tell.
_OWN_RECORD_ELEMENTS = 1 << 16
# Where fewer have changed there is little to learn from each tensor: together they share what a record costs.
_SPARSE_SHARE = 8
# A chunk without its source is measured on one of so many blocks; in full only when it could be the smaller one.
_SAMPLE_BLOCK_BYTES = 4096
_SAMPLE_SHARE = 16
# About what a record more takes; and so many ranges of a file or chunk are worth being told apart.
_RECORD_COST_BYTES = 96
_MOST_RUNS = 2000
# Both versions of a file without tensors are held in memory.
_MOST_OPAQUE_BYTES = 256 << 20
_OPAQUE = (ElementKind.BYTES,)
# Files that hold tensors in another way than safetensors.
_WEIGHTS = frozenset(
    {".bin", ".ckpt", ".ggml", ".gguf", ".npy", ".npz", ".onnx", ".pt", ".pte", ".pth", ".safetensors"}
)
_LARGEST_KEPT_BYTES = 31 << 20
_EMPTY = Encoded(Layout.RAW, 0, b"")


@dataclass(frozen=True, slots=True)
class FilePlan:
    """How a file is made, and a function that yields its records, computed by so many workers."""

    packaged: PackagedFile
    records: Callable[[int], Iterator[Record]]


@dataclass(frozen=True, slots=True)
class _Span:
    """A range of the target's file; `source_offset` is where the source has its like.

    `kinds` are the ways in which its bytes may form numbers; `name` is shared by tensors that play the same part;
    `columns` are the elements of a row, zero where there are no rows.
    """

    offset: int
    length: int
    kinds: tuple[ElementKind, ...]
    source_offset: int | None
    name: str = ""
    columns: int = 0


@dataclass(frozen=True)
class _Piece:
    """At most one chunk of a span: the bytes of both sides, and where the source's lie (None: it has none)."""

    kinds: tuple[ElementKind, ...]
    new: bytes
    old: bytes
    part: Part | None
    name: str
    columns: int = 0

    @cached_property
    def changed(self) -> int:
        """How many elements differ from the source's; all without a source."""
        if self.part is None:
            return self.elements
        old, new = (patterns_of(raw, self.kinds[0]) for raw in (self.old, self.new))
        return int(np.count_nonzero(old != new))

    @property
    def elements(self) -> int:
        return len(self.new) // self.kinds[0].width

    @property
    def is_same(self) -> bool:
        return not self.changed

    @property
    def is_sparse(self) -> bool:
        return self.changed * _SPARSE_SHARE <= self.elements

    def joins(self, other: "_Piece") -> bool:
        """Return whether both may share a record."""
        if self.is_same or other.is_same:
            return self.is_same and other.is_same
        return (self.kinds, self.part is None) == (other.kinds, other.part is None)


def plan_file(target: Path, entry: FileEntry, source: SourceTree) -> FilePlan:
    """Return how the file `entry` of the tree `target` is made from the source."""
    equal = source.equal_of(entry)
    if equal:
        return FilePlan(PackagedFile(file=entry, method="same", source=equal), lambda _: iter(()))
    path = target / entry.path
    layout = layout_at(path)
    if layout is None:
        return _plan_opaque(path, entry, source)
    old = source.like_tensors(entry, layout)
    if not old:
        full = PackagedFile(file=entry, method="full", source=None)
        return FilePlan(full, lambda workers: _full_records(path, _spans(layout, None), workers))
    moved = PackagedFile(file=entry, method="tensors", source=old[0], joined=old[1:])
    old_layout, old_paths = source.layout_of(old), [source.path_of(one) for one in old]
    return FilePlan(moved, lambda workers: _moved_records(path, layout, old_paths, old_layout, workers))


def _plan_opaque(path: Path, entry: FileEntry, source: SourceTree) -> FilePlan:
    spans = [_Span(0, entry.length, _OPAQUE, None)]
    full = FilePlan(
        PackagedFile(file=entry, method="full", source=None), lambda workers: _full_records(path, spans, workers)
    )
    old = source.like_bytes(entry)
    if old is None or max(entry.length, old.length) > _MOST_OPAQUE_BYTES:
        return full
    if max(entry.length, old.length) > MAX_CHUNK_BYTES or PurePosixPath(entry.path).suffix in _WEIGHTS:
        # Too large for one patch, or weights, of which a patch would search much and find little: what is equal is
        # copied, wherever it stood.
        before = source.path_of(old)
        spans = _moved_spans(path, before)
        if all(span.source_offset is None for span in spans):
            return full
        moved = PackagedFile(file=entry, method="tensors", source=old)
        return FilePlan(moved, lambda workers: _copied_records(path, before, spans, workers))
    encoded = CODECS[CodecName.PATCH].encode(path.read_bytes(), source.path_of(old).read_bytes(), ElementKind.BYTES)
    if encoded is None:
        return full
    made = hash_of_made((path.read_bytes(),))
    patch = Record(CodecName.PATCH, ElementKind.BYTES, entry.length, (Part(0, old.length),), encoded, made)
    if patch.length_in_package >= sum(record.length_in_package for record in full.records(1)):
        return full
    return FilePlan(PackagedFile(file=entry, method="patch", source=old), lambda _: iter((patch,)))


def _moved_spans(path: Path, before: Path) -> list[_Span]:
    runs = moved_runs(path.read_bytes(), before.read_bytes(), least=_RECORD_COST_BYTES)
    if len(runs) > _MOST_RUNS:
        return [_Span(0, path.stat().st_size, _OPAQUE, None)]
    return [_Span(run.start, run.end - run.start, _OPAQUE, run.source) for run in runs]


def _copied_records(path: Path, before: Path, spans: list[_Span], workers: int) -> Iterator[Record]:
    with RandomReader(path) as new_file, RandomReader(before) as old_file:
        yield from in_order(_record, _chunks(spans, new_file, old_file), workers=workers)


def _spans(layout: TensorFile, old_layout: TensorFile | None, matcher: TensorMatcher | None = None) -> Iterator[_Span]:
    """Yield the header and each tensor, with its like in the source; what has it only in part is several spans."""
    is_header_alike = old_layout is not None and old_layout.values_offset == layout.values_offset
    yield _Span(0, layout.values_offset, _OPAQUE, 0 if is_header_alike else None)
    for tensor in layout.tensors:
        kinds, name = element_kinds(tensor.dtype), re.sub(r"\d+", "", tensor.name)
        columns = math.prod(tensor.shape[1:]) if len(tensor.shape) > 1 else 0
        for like in matcher.likes(tensor) if matcher else [Like(0, tensor.length, None)]:
            known = 0 if like.offset is None else columns
            yield _Span(tensor.offset + like.start, like.length, kinds, like.offset, name, known)


def _keep_freed_memory() -> None:
    """Have glibc keep what a chunk frees for the next one.

    Its allocator gives the memory of large blocks back to the system, which hands it out again page by page: a tenth of
    a build's time. It keeps blocks up to the size of the largest that was ever freed, and 32 MB at most. Elsewhere this
    changes nothing.
    """
    np.empty(_LARGEST_KEPT_BYTES, dtype=np.uint8)


def _full_records(path: Path, spans: Iterable[_Span], workers: int) -> Iterator[Record]:
    with RandomReader(path) as new_file:
        yield from in_order(_record, _chunks(spans, new_file, new_file), workers=workers)


def _moved_records(
    path: Path, layout: TensorFile, old_paths: Sequence[Path], old_layout: TensorFile, workers: int
) -> Iterator[Record]:
    _keep_freed_memory()
    with contextlib.ExitStack() as stack:
        new_file = stack.enter_context(RandomReader(path))
        old_file = JoinedReader([stack.enter_context(RandomReader(old)) for old in old_paths])
        matcher = TensorMatcher(old_layout, old_file, new_file)
        chunks = _chunks(_spans(layout, old_layout, matcher), new_file, old_file)
        yield from in_order(_record, chunks, workers=workers)


def _chunks(spans: Iterable[_Span], new_file: RandomReader, old_file: OldBytes) -> Iterator[list[_Piece]]:
    """Yield the pieces of each record in order; neighbours of a kind share one up to the size of a chunk."""
    waiting: list[_Piece] = []
    for span in spans:
        for piece in _pieces(span, new_file, old_file):
            if waiting and not _fits(waiting, piece):
                yield waiting
                waiting = []
            waiting.append(piece)
    if waiting:
        yield waiting


def _pieces(span: _Span, new_file: RandomReader, old_file: OldBytes) -> Iterator[_Piece]:
    # Rows stay whole where they can.
    row = span.columns * span.kinds[0].width
    step = _chunk_bytes(span.kinds) // row * row if 0 < row <= _chunk_bytes(span.kinds) else _chunk_bytes(span.kinds)
    for start in range(0, span.length, step):
        length = min(step, span.length - start)
        new = new_file.read_at(span.offset + start, length)
        if span.source_offset is None:
            yield _Piece(span.kinds, new, b"", None, span.name)
            continue
        part = Part(span.source_offset + start, length)
        old = old_file.read_at(part.offset, length)
        piece = _Piece(span.kinds, new, old, part, span.name, span.columns)
        # Only equal bytes and values with steps make use of a source.
        yield from [piece] if new == old or span.kinds[0].has_steps else _shared(piece)


def _shared(piece: _Piece) -> list[_Piece]:
    """Return the ranges of a piece without steps, equal to the source's or not; or all of it where that is smaller."""
    alone = replace(piece, old=b"", part=None)
    runs = equal_runs(piece.new, piece.old, least=_RECORD_COST_BYTES)
    if piece.part is None or not 1 < len(runs) <= _MOST_RUNS:
        return [alone]
    found = []
    for run in runs:
        new = piece.new[run.start : run.end]
        part = None if run.source is None else Part(piece.part.offset + run.source, len(new))
        found.append(replace(alone, new=new, old=new if part else b"", part=part))
    kind = piece.kinds[0]
    packed = sum(len(_encode_full(one.new, kind).frame) for one in found if one.part is None)
    is_smaller = packed + len(found) * _RECORD_COST_BYTES < len(_encode_full(piece.new, kind).frame)
    return found if is_smaller else [alone]


def _chunk_bytes(kinds: tuple[ElementKind, ...]) -> int:
    return min(MAX_CHUNK_ELEMENTS * kinds[0].width, MAX_CHUNK_BYTES)


def _fits(waiting: list[_Piece], piece: _Piece) -> bool:
    if not waiting[-1].joins(piece) or len(waiting) == _MAX_PARTS:
        return False
    total = sum(len(other.new) for other in waiting) + len(piece.new)
    if not piece.is_same and waiting[-1].is_sparse and piece.is_sparse:
        return total <= min(MAX_DIFFERENCE_ELEMENTS * piece.kinds[0].width, MAX_CHUNK_BYTES)
    if not piece.is_same and max(waiting[-1].elements, piece.elements) >= _OWN_RECORD_ELEMENTS:
        return False
    return total <= _chunk_bytes(piece.kinds)


def _record(pieces: list[_Piece]) -> Record:
    record = _unmarked(pieces)
    return replace(record, made=hash_of_made(piece.new for piece in pieces))


def _unmarked(pieces: list[_Piece]) -> Record:
    new = b"".join(piece.new for piece in pieces)
    parts = _joined([piece.part for piece in pieces if piece.part])
    if pieces[0].is_same:
        return Record(CodecName.SAME, ElementKind.BYTES, len(new), parts, _EMPTY)
    kind = pieces[0].kinds[0]
    moved = _moved(pieces, new, parts) if parts else None
    if moved is not None and moved.length_in_package < _least_full(new, kind):
        return moved
    full = Record(CodecName.FULL, kind, len(new), (), _encode_full(new, kind))
    return min(moved or full, full, key=lambda record: record.length_in_package)


def _moved(pieces: list[_Piece], new: bytes, parts: tuple[Part, ...]) -> Record | None:
    old = b"".join(piece.old for piece in pieces)
    kind = _likeliest(pieces[0].kinds, new, old)
    found: list[Record] = []
    # Factors cost about as much as the steps of a matrix of which little changed.
    if len(pieces) == 1 and not pieces[0].is_sparse:
        encoded = LowRank().encode(new, old, kind, columns=pieces[0].columns)
        found += [Record(CodecName.LOW_RANK, kind, len(new), parts, encoded)] if encoded else []
        if found and found[0].length_in_package < _least_difference(new, old, kind):
            return found[0]
    sections = [Section(piece.elements, piece.name) for piece in pieces]
    encoded = Difference().encode(new, old, kind, sections=sections)
    found += [Record(CodecName.DIFFERENCE, kind, len(new), parts, encoded)] if encoded else []
    return min(found, key=lambda record: record.length_in_package, default=None)


def _least_difference(new: bytes, old: bytes, kind: ElementKind) -> int:
    """Return about how many bytes a difference will have at least, judged by a sample."""
    sample = _sample(new)
    return Difference().least_bytes(sample, _sample(old), kind) * len(new) // len(sample) * 9 // 10


def _likeliest(kinds: tuple[ElementKind, ...], new: bytes, old: bytes) -> ElementKind:
    """Return the kind that makes the smallest difference of a sample."""
    if len(kinds) == 1:
        return kinds[0]
    some, before = _sample(new), _sample(old)
    return min(kinds, key=lambda kind: Difference().least_bytes(some, before, kind))


def _least_full(new: bytes, kind: ElementKind) -> int:
    """Return fewer bytes than `new` needs without a source, or zero where a sample cannot tell."""
    sample = _sample(new)
    # A fifth less: the rest may be more alike than the sample.
    return len(_encode_full(sample, kind).frame) * len(new) // len(sample) * 4 // 5 if len(sample) < len(new) else 0


def _sample(raw: bytes) -> bytes:
    """Return one of so many blocks, or all of what is short."""
    step = _SAMPLE_BLOCK_BYTES * _SAMPLE_SHARE
    if len(raw) < step:
        return raw
    return b"".join(raw[start : start + _SAMPLE_BLOCK_BYTES] for start in range(0, len(raw), step))


def _encode_full(new: bytes, kind: ElementKind) -> Encoded:
    encoded = CODECS[CodecName.FULL].encode(new, b"", kind)
    if encoded is None:
        raise RuntimeError(f"codec full refused {len(new)} bytes of {kind.name}, which it can express")
    return encoded


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """Return the same ranges with neighbours made one."""
    joined: list[Part] = []
    for part in parts:
        if joined and joined[-1].offset + joined[-1].length == part.offset:
            joined[-1] = Part(joined[-1].offset, joined[-1].length + part.length)
        else:
            joined.append(part)
    return tuple(joined)
