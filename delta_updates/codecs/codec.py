"""What every codec has in common: the protocol, the payload and its bounds."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from delta_updates.codecs.elements import ElementKind
from delta_updates.codecs.layouts import Layout

MAX_CHUNK_ELEMENTS = 1 << 20
MAX_CHUNK_BYTES = 4 << 20
# Of a difference, whose reader keeps some words for each element.
MAX_DIFFERENCE_ELEMENTS = 1 << 21
# A patch's control triples, and the leading symbols, come on top of what they make.
MAX_PLAIN_BYTES = 2 * MAX_CHUNK_BYTES


class CodecName(IntEnum):
    """The codec's number in a package."""

    SAME = 0
    FULL = 1
    DIFFERENCE = 2
    PATCH = 3
    LOW_RANK = 4


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk as it travels: one zstd frame that unpacks to exactly `plain_length` bytes, arranged as `layout`."""

    layout: Layout
    plain_length: int
    frame: bytes


class Codec(Protocol):
    """Turns one chunk of a target file into a payload, and back."""

    def encode(self, target: bytes, source: bytes, kind: ElementKind) -> Encoded | None:
        """Return the smallest payload this codec finds, or None when it cannot express the chunk.

        Args:
            target: The chunk, at most MAX_CHUNK_BYTES.
            source: What the device has in its place (empty when nothing).
            kind: How the bytes of both form numbers.
        """
        ...

    def decode(self, encoded: Encoded, source: bytes, kind: ElementKind, length: int) -> bytes:
        """Return the chunk's `length` bytes.

        Raises:
            PackageFormatError: The payload does not make such a chunk.
        """
        ...
