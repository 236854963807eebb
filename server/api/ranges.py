"""Byte ranges and conditional requests, decided without any I/O (RFC 9110, sections 13 and 14)."""

import re
from dataclasses import dataclass
from typing import Final

_SINGLE: Final = re.compile(r"bytes=\s*([0-9]{1,18})?\s*-\s*([0-9]{1,18})?\s*", re.IGNORECASE)


class UnsatisfiableRangeError(Exception):
    """No byte of the file lies in the range that was asked for."""


@dataclass(frozen=True)
class ByteRange:
    """Bytes ``first`` to ``last``, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """How many bytes these are."""
        return self.last - self.first + 1


def parse_range(header: str | None, *, if_range: str | None, etag: str, length: int) -> ByteRange | None:
    """The part of a file that is asked for; None means all of it.

    A range that does not parse, and a list of ranges, are answered with all of the file, as the RFC allows. So is a
    range of a file that ``if_range`` knows under another name: the rest of it would not fit to what is there already.

    Raises:
        UnsatisfiableRangeError: The range begins after the end.
    """
    match = _SINGLE.fullmatch(header or "")
    if match is None or match.groups() == (None, None) or if_range not in {None, etag}:
        return None
    first, last = match.groups()
    if first is None:
        suffix = min(int(last), length)
        if suffix == 0:
            raise UnsatisfiableRangeError
        return ByteRange(length - suffix, length - 1)
    if last is not None and int(last) < int(first):
        return None
    if int(first) >= length:
        raise UnsatisfiableRangeError
    return ByteRange(int(first), length - 1 if last is None else min(int(last), length - 1))


def is_fresh(if_none_match: str | None, etag: str) -> bool:
    """Whether the caller has these very bytes already."""
    if if_none_match is None:
        return False
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in known or etag in known
