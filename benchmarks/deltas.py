"""Measure packages against other deltas, and against the entropy, on pairs of versions.

    python benchmarks/deltas.py [--base FOLDER [--versions FOLDER]] [--pairs PATTERN] [--peers PATTERN] [--json]

Without `--base` the pairs are made-up adapters. With `--base FOLDER` (a version that holds base/, SmolLM2-135M in fp16)
they are real: whole models before and after AdamW, SGD and merged LoRA in fp16 and bf16, int8 and int4 models, and
adapters in five formats. Training takes some minutes and needs torch; `--versions FOLDER` keeps what it made.

"entropy" is H(step | tensor, exponent of the old value) in MB: what an ideal coder of these steps would send that had
learnt the frequencies for free. Sizes in MB (10^6 bytes), speed in MB of target per second; every method runs in this
process on one thread, one after the other.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from delta_pairs import Pair, Shape, adapter_steps, made_up_pairs, read_tensors, real_pairs, safetensors_bytes
from delta_peers import Peer, available_peers, patch_from, patch_from_apply

from delta_updates import apply_package, build_package
from delta_updates.codecs.elements import contexts_of, element_kinds, patterns_of, steps_between
from delta_updates.codecs.leading import VALUES

# The test of package sizes measures with these.
__all__ = ["Shape", "adapter_steps", "patch_from", "patch_from_apply", "safetensors_bytes"]

_FILE = "model.safetensors"
_TABLE_WIDTH = 2


@dataclass(frozen=True)
class Row:
    """One method on one pair; `is_scaled` marks sizes that were measured on a slice."""

    pair: str
    method: str
    bytes: int
    ratio: float
    over_entropy: float | None
    build_mb_per_s: float
    apply_mb_per_s: float | None
    is_scaled: bool = False


def conditional_entropy(old: bytes, new: bytes) -> float:
    """Return H(step | tensor, context of the old value) over all tensors that both files have, in bytes.

    Steps of up to 16 bits are counted as they are. Those of 32 bits hardly ever repeat: their leading symbols are
    counted, and the bits below are taken as they are.
    """
    before, bits = read_tensors(old), 0.0
    for name, (dtype, values) in read_tensors(new).items():
        kind = element_kinds(dtype)[0]
        raw = before[name][1].tobytes(), values.tobytes()
        if not kind.has_steps or raw[0] == raw[1]:
            continue
        source, target = (patterns_of(part, kind) for part in raw)
        steps = steps_between(source, target, kind)
        symbols = steps
        if kind.width > _TABLE_WIDTH:
            symbols = VALUES.symbols_of(steps)
            bits += float(np.maximum(symbols.astype(int) // 8 - 1, 0).sum())
        highest = int(symbols.max()) + 1
        joint = np.bincount(contexts_of(source, kind).astype(np.int64) * highest + symbols, minlength=256 * highest)
        bits += _entropy_bits(joint.reshape(256, highest))
    return bits / 8


def _entropy_bits(counts: np.ndarray) -> float:
    """Return the sum over rows of n H(row), in bits."""
    rows = counts.sum(axis=1)
    return float((rows * np.log2(np.maximum(rows, 1))).sum() - (counts * np.log2(np.maximum(counts, 1))).sum())


def measure_ours(pair: str, old: bytes, new: bytes, entropy: float) -> Row:
    """Build and apply a package between two versions that hold one file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for version, raw in (("old", old), ("new", new)):
            (folder / version).mkdir()
            (folder / version / _FILE).write_bytes(raw)
        built = build_package(folder / "old", folder / "new", folder / "package")
        applied = apply_package(
            folder / "old", folder / "package", folder / "out", expected_target_hash=built.target_hash
        )
    mega = len(new) / 1e6
    over = built.package_bytes / entropy if entropy else None
    return Row(pair, "lamella", built.package_bytes, built.ratio, over, mega / built.seconds, mega / applied.seconds)


def measure_peer(peer: Peer, pair: str, old: bytes, new: bytes, entropy: float) -> Row:
    """Run a peer on the pair, or on the middle of both files, and check that it restores the target."""
    length = len(new)
    if length > peer.max_bytes and len(old) == length:
        start = (length - peer.max_bytes) // 2 // 8 * 8
        old, new = (part[start : start + peer.max_bytes] for part in (old, new))
    delta, build_s = _timed(lambda: peer.build(old, new))
    restored, apply_s = _timed(lambda: peer.apply(old, delta, len(new)))
    if restored != new:
        raise SystemExit(f"{pair}: {peer.name} did not restore the target")
    mega, size = len(new) / 1e6, round(len(delta) * length / len(new))
    return Row(
        pair,
        peer.name,
        size,
        size / length,
        size / entropy if entropy else None,
        mega / build_s,
        mega / apply_s if peer.is_apply_its_own else None,
        is_scaled=len(new) != length,
    )


def _timed(work: Callable[[], bytes]) -> tuple[bytes, float]:
    started = time.perf_counter()
    result = work()
    return result, max(time.perf_counter() - started, 1e-9)


def measure(pair: Pair, *, peers: str) -> Iterator[Row]:
    """Yield a row for every method; `peers` is a pattern of names."""
    old, new = pair.load()
    entropy = conditional_entropy(old, new)
    yield measure_ours(pair.name, old, new, entropy)
    yield Row(pair.name, "entropy", round(entropy), entropy / len(new), 1.0, 0.0, None)
    for peer in available_peers():
        if re.search(peers, peer.name):
            yield measure_peer(peer, pair.name, old, new, entropy)


def _print_row(row: Row) -> None:
    over = "-" if row.over_entropy is None else f"{row.over_entropy:.3f}"
    build, apply = ("-" if not speed else f"{speed:.1f}" for speed in (row.build_mb_per_s, row.apply_mb_per_s))
    size = f"{'~' * row.is_scaled}{row.bytes / 1e6:.3f}"
    print(f"{row.pair:<28} {row.method:<22} {size:>10} {row.ratio:>8.4f} {over:>8} {build:>8} {apply:>8}", flush=True)


def main() -> None:
    """Measure all pairs and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", type=Path, help="a version that holds base/, SmolLM2-135M in fp16")
    parser.add_argument("--versions", type=Path, help="where trained versions are kept")
    parser.add_argument("--pairs", default="", help="only pairs whose name has this pattern")
    parser.add_argument("--peers", default="", help="only peers whose name has this pattern; ^$ for none")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = options.versions or Path(name)
        pairs = real_pairs(options.base / "base", folder) if options.base else made_up_pairs()
        if not options.json:
            print(f"{'pair':<28} {'method':<22} {'MB':>10} {'ratio':>8} {'/entropy':>8} {'build':>8} {'apply':>8}")
        for pair in pairs:
            if re.search(options.pairs, pair.name):
                for row in measure(pair, peers=options.peers):
                    rows.append(row)
                    if not options.json:
                        _print_row(row)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
