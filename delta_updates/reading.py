"""Reading a file at any place, in bounded pieces, with `pread`: mapping it would count as resident memory."""

import hashlib
import itertools
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from delta_updates.errors import IntegrityError

PIECE_BYTES = 1 << 20


class OldBytes(Protocol):
    """What is read at any place: one file, or several as if they were one."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""

    def pieces(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield bytes in bounded pieces."""


class RandomReader:
    """One open file. It is opened once, so that what was checked is what is read.

    Attributes:
        path: Where it was found.
        length: Its length in bytes when it was opened.
        identity: Device and inode.
        state: Those, its length, and when it was last written in nanoseconds.
        links: How many names it has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # O_NONBLOCK: opening a pipe that someone put in a tree must not wait for its writer.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise IntegrityError(f"{path} is not a regular file")
        self.length = status.st_size
        self.identity = (status.st_dev, status.st_ino)
        self.state = (*self.identity, status.st_size, status.st_mtime_ns)
        self.links = status.st_nlink

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; a second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            IntegrityError: The file ends before.
        """
        parts: list[bytes] = []
        while length > 0:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                raise IntegrityError(f"{self.path} ended at byte {offset}, {length} bytes early")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `offset` (all, or `length` of them) in pieces of at most 1 MiB."""
        end = self.length if length is None else offset + length
        for start in range(offset, end, PIECE_BYTES):
            yield self.read_at(start, min(PIECE_BYTES, end - start))

    def sha256(self) -> str:
        """Return the SHA-256 of the whole content in hex."""
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()


class JoinedReader:
    """Several open files, one after the other as if they were one; who opened them closes them."""

    def __init__(self, readers: Sequence[RandomReader]) -> None:
        self._readers = readers
        self._starts = [0, *itertools.accumulate(reader.length for reader in readers)]

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            IntegrityError: The last file ends before.
        """
        if offset + length > self._starts[-1]:
            raise IntegrityError(f"{length} bytes at {offset} of {self._starts[-1]}: {self._readers[-1].path} is short")
        parts: list[bytes] = []
        end = offset + length
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            until = min(end, self._starts[number + 1])
            parts.append(self._readers[number].read_at(offset - self._starts[number], until - offset))
            offset = until
        return b"".join(parts)

    def pieces(self, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `offset` (all, or `length` of them) in pieces of at most 1 MiB."""
        end = self._starts[-1] if length is None else offset + length
        for start in range(offset, end, PIECE_BYTES):
            yield self.read_at(start, min(PIECE_BYTES, end - start))
