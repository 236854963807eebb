"""What general-purpose tools make of the same two versions, file by file: zstd, zstd with the old file, bsdiff."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import bsdiff4
import zstandard

from delta_updates import scan_tree
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_FOR_BSDIFF: Final = 16 << 20  # it needs seventeen times its input in memory, and minutes
_MOST_FOR_ZSTD: Final = 1 << 30  # files are held in memory
_LEVEL: Final = 3


@dataclass(frozen=True)
class Peer:
    """A peer's figures over all files; None where it did not run, and then why."""

    size: int | None = None
    build_seconds: float | None = None
    apply_seconds: float | None = None
    why_not: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a mapping."""
        return asdict(self)


def measure_peers(source: Path, target: Path) -> list[tuple[str, Peer]]:
    """Run every peer that can be run on versions of this size; what each makes is undone and compared.

    Raises:
        ConfigurationError: A peer did not give a file back: its figures would mean nothing.
    """
    pairs = _pairs(source, target)
    largest = max((max(old, new) for _, _, old, new in pairs), default=0)
    return [
        (f"zstd -{_LEVEL}", _limited(pairs, _zstd, largest, _MOST_FOR_ZSTD)),
        (f"zstd -{_LEVEL} --patch-from", _with_program(pairs, largest)),
        ("bsdiff4", _limited(pairs, _bsdiff, largest, _MOST_FOR_BSDIFF)),
    ]


_Pair = tuple[Path | None, Path, int, int]
_Run = tuple[int, float, float]


def _pairs(source: Path, target: Path) -> list[_Pair]:
    """Each file of the target that changed, with the source's of the same path, and both lengths."""
    before = {entry.path: entry for entry in scan_tree(source)}
    pairs: list[_Pair] = []
    for entry in scan_tree(target):
        old = before.get(entry.path)
        if old is None or old.sha256 != entry.sha256:
            path = None if old is None else source / entry.path
            pairs.append((path, target / entry.path, 0 if old is None else old.length, entry.length))
    return pairs


def _with_program(pairs: list[_Pair], largest: int) -> Peer:
    if shutil.which("zstd") is None:
        return Peer(why_not="needs the program zstd")
    return _limited(pairs, _patch_from, largest, _MOST_FOR_ZSTD)


def _limited(pairs: list[_Pair], run: Callable[[bytes, bytes], _Run], largest: int, most: int) -> Peer:
    if largest > most:
        return Peer(why_not=f"left out above {most >> 20} MiB a file")
    try:
        return _measured(pairs, run)
    except subprocess.CalledProcessError as error:
        return Peer(why_not=f"ended with {error.returncode}")


def _measured(pairs: list[_Pair], run: Callable[[bytes, bytes], _Run]) -> Peer:
    size, build, apply = 0, 0.0, 0.0
    for old, new, _, _ in pairs:
        made = run(b"" if old is None else old.read_bytes(), new.read_bytes())
        size, build, apply = size + made[0], build + made[1], apply + made[2]
    return Peer(size, build, apply)


def _zstd(_old: bytes, new: bytes) -> _Run:
    compressor, decompressor = zstandard.ZstdCompressor(level=_LEVEL), zstandard.ZstdDecompressor()
    return _both(lambda: compressor.compress(new), decompressor.decompress, new)


def _patch_from(old: bytes, new: bytes) -> _Run:
    """The program zstd: its library, asked through Python, finds nothing far back in the history (27% larger here)."""
    with tempfile.TemporaryDirectory(prefix="lamella-delta-") as scratch:
        folder = Path(scratch)
        (folder / "old").write_bytes(old)
        (folder / "new").write_bytes(new)
        common = ["zstd", "-q", "-f", f"-{_LEVEL}", "--long=31"]
        if old:  # the program aborts on an empty history
            common.append(f"--patch-from={folder / 'old'}")

        def make() -> bytes:
            _run([*common, str(folder / "new"), "-o", str(folder / "made")])
            return (folder / "made").read_bytes()

        def undo(_made: bytes) -> bytes:
            _run([*common, "-d", str(folder / "made"), "-o", str(folder / "undone")])
            return (folder / "undone").read_bytes()

        return _both(make, undo, new)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - zstd, on files that we made


def _bsdiff(old: bytes, new: bytes) -> _Run:
    return _both(lambda: bsdiff4.diff(old, new), lambda patch: bsdiff4.patch(old, patch), new)


def _both(make: Callable[[], bytes], undo: Callable[[bytes], bytes], expected: bytes) -> _Run:
    started = time.perf_counter()
    made = make()
    middle = time.perf_counter()
    if undo(made) != expected:
        raise ConfigurationError("A peer did not give the file back; nothing is compared.")
    return len(made), middle - started, time.perf_counter() - middle
