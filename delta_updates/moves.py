"""In which order the chunks of a target may overwrite the source that they are made from.

A chunk that reads a place must be made before another one overwrites that place; this is a graph, and its order is
found by taking what nothing waits for. Where chunks wait for each other in a circle (two tensors change places), the
bytes that one of them reads are stashed first, which frees those that it blocks. (Burns and Long, "In-place
reconstruction of version differences", 1998, break such circles by sending bytes instead.)

Chunks are made in steps of a bounded size: all reads of a step come before its writes, and a step is either done or
done again. All this follows from the package alone, so that a device that lost power plans the same steps again.
"""

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from delta_updates.codecs import CodecName
from delta_updates.errors import PackageLimitError
from delta_updates.package import PackagedFile, PackageHeader, PackageReader, Part

# A step that overwrites what it reads is written twice, first to scratch.
STEP_BYTES = 8 << 20
# What is copied may be of any length; it moves in pieces of so many bytes.
PIECE_BYTES = 1 << 20
# So much a plan may hold; a model of 64 GiB has about 65,000 chunks.
_MAX_CHUNKS = 100_000
_MAX_PARTS = 200_000
_MAX_CONFLICTS = 300_000

Place = tuple[str, int]
"""Where a file's bytes lie: in the storage of the n-th source file ("old", n) or n-th target file ("new", n)."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `start` to `end` of a place."""

    place: Place
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Makes `length` bytes at `offset` of the header's `file`, from what it reads.

    `record` is where its record lies in the package; None when it only moves bytes.
    """

    file: int
    offset: int
    length: int
    reads: tuple[Range, ...]
    writes: Range
    record: int | None

    @property
    def bytes_read(self) -> int:
        """How many bytes it needs of the source."""
        return sum(read.end - read.start for read in self.reads)


@dataclass(frozen=True, slots=True)
class Step:
    """Chunks, by number, that are stashed or made together; `overlaps` when it overwrites what it reads."""

    is_stash: bool
    chunks: tuple[int, ...]
    overlaps: bool = False


@dataclass(frozen=True)
class Moves:
    """What is done with each file and chunk.

    Attributes:
        sources: The source's files that are needed, by path.
        hosts: The source's file, by number, in whose storage each target file is made; None: in a new file.
        chunks: All that must be computed or moved; what stays where it is, is not among them.
        steps: The chunks in order.
        scratch_bytes: The most that lies in scratch at a time.
    """

    sources: tuple[str, ...]
    hosts: tuple[int | None, ...]
    chunks: tuple[Chunk, ...]
    steps: tuple[Step, ...]
    scratch_bytes: int


def plan_moves(reader: PackageReader) -> Moves:
    """Read a package whole and return how its target is made in place.

    Raises:
        PackageFormatError: The package is damaged (PackageLimitError: it is cut too finely to be planned).
    """
    header = reader.header
    sources = tuple(sorted({entry.path for packaged in header.files for entry in packaged.sources}))
    hosts = _choose_hosts(header, sources)
    chunks: list[Chunk] = []
    parts = 0
    for number, packaged in enumerate(header.files):
        place = ("new", number) if hosts[number] is None else ("old", hosts[number] or 0)
        for chunk in _chunks_of(number, packaged, reader, sources, place):
            chunks.append(chunk)
            parts += len(chunk.reads)
            if len(chunks) > _MAX_CHUNKS or parts > _MAX_PARTS:
                raise PackageLimitError(f"package has more than {_MAX_CHUNKS} chunks or {_MAX_PARTS} parts")
    reader.finish()
    order = _Order(chunks)
    steps = tuple(_steps(order.sorted(), chunks))
    return Moves(sources, hosts, tuple(chunks), steps, _scratch_bytes(steps, chunks))


def _choose_hosts(header: PackageHeader, sources: tuple[str, ...]) -> tuple[int | None, ...]:
    """Give each source file to one target file at most: to one that is the same, else to the one of its own path."""

    def rank(number: int) -> tuple[bool, bool, int]:
        packaged = header.files[number]
        path = packaged.source.path if packaged.source else None
        return packaged.method != "same", path != packaged.file.path, number

    hosts: list[int | None] = [None] * len(header.files)
    free = set(sources)
    for number in sorted(range(len(hosts)), key=rank):
        source = header.files[number].source
        if source and source.path in free:
            free.remove(source.path)
            hosts[number] = sources.index(source.path)
    return tuple(hosts)


def _chunks_of(
    number: int, packaged: PackagedFile, reader: PackageReader, sources: tuple[str, ...], place: Place
) -> Iterator[Chunk]:
    lies = _Lies(packaged, sources)
    if packaged.method == "same":
        yield from _copies(number, 0, lies.ranges([Part(0, packaged.file.length)]), place)
        return
    offset, position = 0, reader.position
    for record in reader.records(packaged):
        if record.codec is CodecName.SAME:
            yield from _copies(number, offset, lies.ranges(record.parts), place)
        else:
            reads = tuple(lies.ranges(record.parts))
            writes = Range(place, offset, offset + record.length)
            yield Chunk(number, offset, record.length, reads, writes, position)
        offset, position = offset + record.length, reader.position


class _Lies:
    """Where the parts of a file lie among the source's files, which count as one."""

    def __init__(self, packaged: PackagedFile, sources: tuple[str, ...]) -> None:
        self._places: list[Place] = [("old", sources.index(entry.path)) for entry in packaged.sources]
        self._starts = [0, *itertools.accumulate(entry.length for entry in packaged.sources)]

    def ranges(self, parts: Iterable[Part]) -> Iterator[Range]:
        """Yield them; one that reaches from a file into the next is two."""
        for part in parts:
            at, end = part.offset, part.offset + part.length
            while at < end:
                number = bisect_right(self._starts, at) - 1
                start = self._starts[number]
                until = min(end, self._starts[number + 1])
                yield Range(self._places[number], at - start, until - start)
                at = until


def _copies(number: int, offset: int, ranges: Iterable[Range], place: Place) -> Iterator[Chunk]:
    for read in ranges:
        if (read.place, read.start) != (place, offset):
            for first in range(read.start, read.end, PIECE_BYTES):
                length, at = min(PIECE_BYTES, read.end - first), offset + first - read.start
                reads, writes = (Range(read.place, first, first + length),), Range(place, at, at + length)
                yield Chunk(number, at, length, reads, writes, None)
        offset += read.end - read.start


class _Writes:
    """Which chunk writes where; no two write to one place."""

    def __init__(self, chunks: Iterable[tuple[int, Chunk]]) -> None:
        self._by_place: dict[Place, list[tuple[int, int, int]]] = {}
        for number, chunk in chunks:
            lines = self._by_place.setdefault(chunk.writes.place, [])
            lines.append((chunk.writes.start, chunk.writes.end, number))
        for lines in self._by_place.values():
            lines.sort()

    def over(self, read: Range) -> Iterator[int]:
        """Yield the chunks that write into what is read."""
        lines = self._by_place.get(read.place, [])
        at = max(bisect_right(lines, (read.start,)) - 1, 0)
        while at < len(lines) and lines[at][0] < read.end:
            if lines[at][1] > read.start:
                yield lines[at][2]
            at += 1


@dataclass
class _Order:
    """Sorts chunks so that none overwrites what another one still reads."""

    chunks: list[Chunk]
    # For each chunk: those that must be made before it, and those that wait for it.
    blockers: list[set[int]] = field(init=False)
    waiting: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.blockers = [set() for _ in self.chunks]
        self.waiting = [set() for _ in self.chunks]
        writes, conflicts = _Writes(enumerate(self.chunks)), 0
        for number, chunk in enumerate(self.chunks):
            for read in chunk.reads:
                for other in writes.over(read):
                    if other != number:
                        self.blockers[other].add(number)
                        self.waiting[number].add(other)
                        conflicts += 1
            if conflicts > _MAX_CONFLICTS:
                raise PackageLimitError(f"chunks overwrite each other's source more than {_MAX_CONFLICTS} times")

    def sorted(self) -> Iterator[tuple[bool, int]]:
        """Yield (is_stash, chunk)."""
        ready = [number for number, blockers in enumerate(self.blockers) if not blockers]
        costs = [self._cost(number) for number in range(len(self.chunks))]
        stuck = [(cost, number) for number, cost in enumerate(costs) if cost]
        heapq.heapify(ready)
        heapq.heapify(stuck)
        done = [False] * len(self.chunks)

        def free(number: int) -> None:
            """Nothing waits for this chunk any more."""
            for other in self.waiting[number]:
                self.blockers[other].discard(number)
                costs[other] -= self.chunks[number].bytes_read
                heapq.heappush(stuck, (costs[other], other))
                if not self.blockers[other] and not done[other]:
                    heapq.heappush(ready, other)
            self.waiting[number] = set()

        left = len(self.chunks)
        while left:
            if ready:
                number = heapq.heappop(ready)
                done[number] = True
                left -= 1
                yield False, number
                free(number)
                continue
            cost, number = heapq.heappop(stuck)
            if done[number] or cost != costs[number] or not self.blockers[number]:
                continue
            # A circle: the cheapest way to let one chunk of it go on is to stash what those before it read.
            for other in sorted(self.blockers[number]):
                yield True, other
                free(other)

    def _cost(self, number: int) -> int:
        return sum(self.chunks[other].bytes_read for other in self.blockers[number])


def _steps(order: Iterable[tuple[bool, int]], chunks: list[Chunk]) -> Iterator[Step]:
    """Put neighbours together, up to the size of a step."""
    stashed: set[int] = set()
    waiting: list[int] = []
    is_stash, size = False, 0

    def step() -> Step:
        if is_stash:
            stashed.update(waiting)
            return Step(is_stash=True, chunks=tuple(waiting))
        writes = _Writes((number, chunks[number]) for number in waiting)
        reads = (read for number in waiting if number not in stashed for read in chunks[number].reads)
        overlaps = any(True for read in reads for _ in writes.over(read))
        return Step(is_stash=False, chunks=tuple(waiting), overlaps=overlaps)

    for kind, number in order:
        length = chunks[number].bytes_read if kind else chunks[number].length
        if waiting and (kind != is_stash or size + length > STEP_BYTES):
            yield step()
            waiting, size = [], 0
        is_stash, size = kind, size + length
        waiting.append(number)
    if waiting:
        yield step()


def _scratch_bytes(steps: Iterable[Step], chunks: list[Chunk]) -> int:
    stashed: dict[int, int] = {}
    redo = most = 0
    for step in steps:
        if step.is_stash:
            stashed |= {number: chunks[number].bytes_read for number in step.chunks}
        elif step.overlaps:
            # The file is used again and again, and never made shorter.
            redo = max(redo, sum(chunks[number].length for number in step.chunks))
        most = max(most, redo + sum(stashed.values()))
        if not step.is_stash:
            for number in step.chunks:
                stashed.pop(number, None)
    return most
