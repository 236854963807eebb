"""Codec `patch`: edits to a small file without tensors, found by bsdiff (Percival, 2003).

The edits travel in our own bounded frame instead of bsdiff's bzip2 file, whose blocks say nothing about how large they
unpack: u32 number of edits; per edit three i64 (bytes to add, bytes to insert, how far to move in the source); then all
differences; then all insertions.
"""

import numpy as np

from delta_updates.codecs.codec import MAX_CHUNK_BYTES, MAX_PLAIN_BYTES, Encoded
from delta_updates.codecs.elements import ElementKind
from delta_updates.codecs.frames import pack, unpack
from delta_updates.codecs.layouts import Layout
from delta_updates.errors import PackageFormatError

_COUNT_BYTES = 4
_EDIT_BYTES = 24


class Patch:
    """bsdiff's edits, in memory: both files have at most MAX_CHUNK_BYTES."""

    def encode(self, target: bytes, source: bytes, kind: ElementKind) -> Encoded | None:
        """Return the edits; None when a side is empty or too large, or the edits are."""
        del kind
        if not 0 < len(target) <= MAX_CHUNK_BYTES or not 0 < len(source) <= MAX_CHUNK_BYTES:
            return None
        # Only a builder finds edits; applying them needs no bsdiff.
        from bsdiff4 import core  # noqa: PLC0415 - see above

        control, differences, insertions = core.diff(source, target)
        count = len(control) // _EDIT_BYTES
        streams = [count.to_bytes(_COUNT_BYTES, "little"), _plain_edits(control), differences, insertions]
        length = sum(map(len, streams))
        return Encoded(Layout.RAW, length, pack(streams)) if length <= MAX_PLAIN_BYTES else None

    def decode(self, encoded: Encoded, source: bytes, kind: ElementKind, length: int) -> bytes:
        """Return the edited source."""
        del kind
        plain = unpack(encoded.frame, encoded.plain_length)
        count = int.from_bytes(plain[:_COUNT_BYTES], "little")
        start = _COUNT_BYTES + count * _EDIT_BYTES
        if encoded.layout is not Layout.RAW or len(plain) != start + length:
            raise PackageFormatError(f"patch of {len(plain)} bytes with {count} edits cannot make {length} bytes")
        edits = np.frombuffer(plain, dtype="<i8", count=3 * count, offset=_COUNT_BYTES).reshape(count, 3)
        # Checked before they are summed: nothing may overflow.
        if count and (np.abs(edits) > MAX_CHUNK_BYTES).any():
            raise PackageFormatError("patch moves further than any small file is long")
        return _apply(edits.tolist(), plain[start:], source)


def _plain_edits(control: bytes) -> bytes:
    """Return bsdiff's sign-and-magnitude numbers in two's complement."""
    numbers = np.frombuffer(control, dtype="<u8")
    sizes = (numbers & np.uint64((1 << 63) - 1)).astype("<i8")
    return np.where(numbers >> np.uint64(63), -sizes, sizes).tobytes()


def _apply(edits: list[list[int]], payload: bytes, source: bytes) -> bytes:
    added_total = sum(added for added, _, _ in edits)
    inserted_total = sum(inserted for _, inserted, _ in edits)
    if any(added < 0 or inserted < 0 for added, inserted, _ in edits) or added_total + inserted_total != len(payload):
        raise PackageFormatError(f"patch edits make {added_total} + {inserted_total} bytes of {len(payload)}")
    old = np.frombuffer(source, dtype=np.uint8)
    new = np.frombuffer(payload, dtype=np.uint8)
    parts: list[bytes] = []
    place, added_end, inserted_end = 0, 0, added_total
    for added, inserted, move in edits:
        if added and not 0 <= place <= len(old) - added:
            raise PackageFormatError(f"patch reads {added} bytes at {place} of a source of {len(old)}")
        parts.append((old[place : place + added] + new[added_end : added_end + added]).tobytes() if added else b"")
        parts.append(payload[inserted_end : inserted_end + inserted])
        place, added_end, inserted_end = place + added + move, added_end + added, inserted_end + inserted
    return b"".join(parts)
