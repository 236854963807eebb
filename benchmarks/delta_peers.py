"""Other ways to send what a version adds to another, for `deltas.py`.

Those that are programs or packages of their own (xdelta3; zipnn, z4ai, hdiffpatch from PyPI) are measured where they
are installed. A peer that would need many minutes is given a slice of both files, and its size is scaled up: its rows
are marked with ~.
"""

import importlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bsdiff4
import zstandard

_MEGA = 1 << 20


@dataclass(frozen=True)
class Peer:
    """A method: `build(old, new)` makes a delta, `apply(old, delta, length)` the new file again.

    `max_bytes` bounds what it is given; `is_apply_its_own` says whether the time of `apply` is the method's.
    """

    name: str
    build: Callable[[bytes, bytes], bytes]
    apply: Callable[[bytes, bytes, int], bytes]
    max_bytes: int
    is_apply_its_own: bool = True


def available_peers() -> Iterator[Peer]:
    """Yield the peers that can run here."""
    for level, limit in ((3, 1 << 40), (19, 16 * _MEGA)):
        yield Peer(f"zstd -{level} (full)", partial(_zstd, level), _unzstd, limit)
    for level, limit in ((3, 1 << 40), (19, 16 * _MEGA)):
        yield Peer(
            f"zstd -{level} --patch-from",
            partial(patch_from, level=level),
            partial(patch_from_apply, level=level),
            limit,
            is_apply_its_own=False,
        )
    yield Peer("bsdiff4", bsdiff4.diff, lambda old, delta, _: bsdiff4.patch(old, delta), 4 * _MEGA)
    if shutil.which("xdelta3"):
        yield Peer("xdelta3 -9", _xdelta3, _xdelta3_apply, 32 * _MEGA)
    if importlib.util.find_spec("hdiffpatch"):
        yield Peer("HDiffPatch (zstd)", _hdiffpatch, _hdiffpatch_apply, 4 * _MEGA)
    if importlib.util.find_spec("zipnn"):
        yield Peer("ZipNN delta", _zipnn, _zipnn_apply, 1 << 40)
    if importlib.util.find_spec("z4ai"):
        yield Peer("z4ai", _z4ai, _z4ai_apply, 1 << 40)


def _zstd(level: int, old: bytes, new: bytes) -> bytes:
    del old
    return zstandard.ZstdCompressor(level=level).compress(new)


def _unzstd(old: bytes, delta: bytes, length: int) -> bytes:
    del old
    return zstandard.ZstdDecompressor().decompress(delta, max_output_size=length)


def patch_from(old: bytes, new: bytes, level: int = 19) -> bytes:
    """Return what `zstd --long=31 --patch-from` sends: what `new` adds to a stream that has seen `old`.

    Not a dictionary: zstd looks for long-distance matches in the history of a stream, but not in a dictionary, which
    costs this method a fifth on whole models. Sizes equal those of the zstd program.
    """
    return _after_history(old, new, level)[1]


def patch_from_apply(old: bytes, delta: bytes, length: int, level: int = 19) -> bytes:
    """Undo `patch_from`; slow, because the history is made again, so nobody should take its time for zstd's."""
    history = _after_history(old, bytes(length), level)[0]
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    return unpacker.decompress(history + delta)[len(old) :]


def _after_history(old: bytes, new: bytes, level: int) -> tuple[bytes, bytes]:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(old) + len(new), window_log=_window_log(old, new), enable_ldm=True
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(old) + len(new))
    history = packer.compress(old) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return history, packer.compress(new) + packer.flush()


def _window_log(old: bytes, new: bytes) -> int:
    return max(20, min(31, (len(old) + len(new)).bit_length()))


def _xdelta3(old: bytes, new: bytes) -> bytes:
    return _with_files(lambda a, b, out: ["xdelta3", "-9", "-f", "-B", str(1 << 30), "-e", "-s", a, b, out], old, new)


def _xdelta3_apply(old: bytes, delta: bytes, length: int) -> bytes:
    del length
    return _with_files(lambda a, b, out: ["xdelta3", "-f", "-B", str(1 << 30), "-d", "-s", a, b, out], old, delta)


def _with_files(command: Callable[[str, str, str], list[str]], first: bytes, second: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first").write_bytes(first)
        (folder / "second").write_bytes(second)
        subprocess.run(command(*(str(folder / part) for part in ("first", "second", "out"))), check=True)
        return (folder / "out").read_bytes()


def _hdiffpatch(old: bytes, new: bytes) -> bytes:
    module = importlib.import_module("hdiffpatch")
    delta: bytes = module.diff(old, new, compression=module.COMPRESSION_ZSTD)
    return delta


def _hdiffpatch_apply(old: bytes, delta: bytes, length: int) -> bytes:
    del length
    new: bytes = importlib.import_module("hdiffpatch").apply(old, delta)
    return new


def _zipnn_of(old: bytes) -> Any:  # noqa: ANN401 - it has no types
    # Its element type only chooses how bytes are split; both 16-bit ones split in two.
    del old
    return importlib.import_module("zipnn").ZipNN(
        bytearray_dtype="float16", delta_compressed_type="byte", input_format="byte", threads=1
    )


def _zipnn(old: bytes, new: bytes) -> bytes:
    return bytes(_zipnn_of(old).compress(bytearray(new), delta_second_data=bytearray(old)))


def _zipnn_apply(old: bytes, delta: bytes, length: int) -> bytes:
    del length
    return bytes(_zipnn_of(old).decompress(bytearray(delta), delta_second_data=bytearray(old)))


def _z4ai(old: bytes, new: bytes) -> bytes:
    delta: bytes = importlib.import_module("z4ai.model_delta").compress(new, old, threads=1)
    return delta


def _z4ai_apply(old: bytes, delta: bytes, length: int) -> bytes:
    del length
    return bytes(importlib.import_module("z4ai.model_delta").decompress(delta, old))
