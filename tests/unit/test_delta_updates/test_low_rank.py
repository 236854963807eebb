"""Codec `low_rank` finds merged adapters, brings back every bit pattern, and refuses payloads that make no chunk."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simulators.version_trees import safetensors_file, write_tree

from delta_updates import PackageFormatError, apply_package, build_package
from delta_updates.codecs import Difference, ElementKind, Encoded, LowRank
from delta_updates.codecs.classes import arrange_classes
from delta_updates.codecs.elements import FLOAT_FIELDS, patterns_of
from delta_updates.codecs.factors import MAX_FACTOR, MAX_RANK, MAX_SHIFT, Factors, read_factors
from delta_updates.codecs.fitting import find_factors
from delta_updates.codecs.frames import pack
from delta_updates.codecs.layouts import Layout
from delta_updates.codecs.prediction import format_of_sums, predict
from delta_updates.codecs.streams import Streams
from delta_updates.package import PackageReader

_KINDS = (ElementKind.FLOAT16, ElementKind.BFLOAT16, ElementKind.FLOAT32)
_BUILD = """
import sys
from pathlib import Path
from delta_updates import build_package
build_package(*(Path(path) for path in sys.argv[1:]))
"""


def _raw(values: np.ndarray, kind: ElementKind) -> bytes:
    wide = torch.from_numpy(values.astype(np.float32))
    dtype = {1: torch.float16, 2: torch.bfloat16, 3: torch.float32}[kind]
    return wide.to(dtype).view(torch.uint8).numpy().tobytes()


def _merged(kind: ElementKind, *, rank: int, rows: int = 256, columns: int = 320, seed: int = 3) -> tuple[bytes, bytes]:
    """Return a matrix of weights before and after an adapter of some rank was merged into it."""
    draw = np.random.default_rng(seed)
    old = draw.normal(0, 0.05, (rows, columns))
    change = draw.normal(0, 0.02, (rows, rank)) @ draw.normal(0, 0.06, (rank, columns))
    old = np.frombuffer(_raw(old, kind), f"<u{kind.width}")
    start = torch.from_numpy(old.copy()).view({1: torch.float16, 2: torch.bfloat16, 3: torch.float32}[kind]).float()
    return old.tobytes(), _raw(start.numpy().reshape(rows, columns) + change, kind)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("rank", [1, 8, 16])
def test_a_merged_adapter_takes_a_fraction_of_its_steps(kind: ElementKind, rank: int) -> None:
    old, new = _merged(kind, rank=rank)
    encoded, steps = LowRank().encode(new, old, kind, columns=320), Difference().encode(new, old, kind)

    assert encoded is not None
    assert steps is not None
    assert LowRank().decode(encoded, old, kind, len(new)) == new
    assert len(encoded.frame) * 2 < len(steps.frame)


def test_an_adapter_of_a_high_rank_is_found() -> None:
    old, new = _merged(ElementKind.FLOAT16, rank=40, rows=768, columns=768)
    factors = find_factors(
        patterns_of(old, ElementKind.FLOAT16), patterns_of(new, ElementKind.FLOAT16), ElementKind.FLOAT16, columns=768
    )
    assert factors is not None
    assert factors.left.shape == (768, 40)


@pytest.mark.parametrize("kind", _KINDS)
def test_changes_without_structure_are_left_to_others(kind: ElementKind) -> None:
    draw = np.random.default_rng(5)
    old = draw.normal(0, 0.05, (256, 320))
    noise = old + draw.normal(0, 1e-3, old.shape)
    assert LowRank().encode(_raw(noise, kind), _raw(old, kind), kind, columns=320) is None
    assert LowRank().encode(_raw(old, kind), _raw(old, kind), kind, columns=320) is None


@given(data=st.data(), kind=st.sampled_from(_KINDS))
@settings(max_examples=60)
def test_any_patterns_come_back(data: st.DataObject, kind: ElementKind) -> None:
    rows, columns = data.draw(st.integers(60, 90)), data.draw(st.integers(60, 90))
    old, new = (bytearray(raw) for raw in _merged(kind, rank=2, rows=rows, columns=columns))
    for side in (old, new):
        for at, pattern in data.draw(
            st.lists(st.tuples(st.integers(0, rows * columns - 1), st.binary(min_size=4, max_size=4)))
        ):
            side[at * kind.width : (at + 1) * kind.width] = pattern[: kind.width]
    encoded = LowRank().encode(bytes(new), bytes(old), kind, columns=columns)
    if encoded is not None:
        assert LowRank().decode(encoded, bytes(old), kind, len(new)) == new


@st.composite
def _sums(draw: st.DrawFn) -> tuple[ElementKind, np.ndarray, np.ndarray]:
    kind = draw(st.sampled_from(_KINDS))
    patterns = draw(st.lists(st.integers(0, (1 << 8 * kind.width) - 1), min_size=1, max_size=40))
    exact = st.builds(lambda number, shift: number * 2.0**-shift, st.integers(-(2**40), 2**40), st.integers(-90, 90))
    changes = draw(st.lists(exact, min_size=len(patterns), max_size=len(patterns)))
    return kind, np.array(patterns, f"<u{kind.width}"), np.array(changes)


@given(_sums())
def test_what_is_predicted_is_the_nearest_float(sums: tuple[ElementKind, np.ndarray, np.ndarray]) -> None:
    kind, old, changes = sums
    with np.errstate(over="ignore", invalid="ignore"):
        found = predict(old, changes.astype(format_of_sums(kind)), kind).patterns
        dtype = {1: torch.float16, 2: torch.bfloat16, 3: torch.float32}[kind]
        before = torch.from_numpy(old.copy()).view(dtype)
        wide = before.double() + torch.from_numpy(changes)
    top = FLOAT_FIELDS[kind]
    for pattern, guess, value in zip(old.tolist(), found.tolist(), wide.tolist(), strict=True):
        if pattern >> top.mantissa_bits & top.highest_field == top.highest_field:
            assert guess == pattern
        elif 2.0 ** (2 - top.bias) < abs(value) < 2.0 ** (top.bias - 1):
            at = torch.tensor([guess]).to({2: torch.uint16, 4: torch.uint32}[kind.width]).view(dtype).double().item()
            # Nearest, but for what the sum lost before it was rounded again.
            assert abs(at - value) <= abs(value) * 2.0 ** -(top.mantissa_bits + 1) * (1 + 2.0**-10)


def test_a_processor_that_flushes_subnormals_predicts_the_same() -> None:
    draw = np.random.default_rng(8)
    for kind in _KINDS:
        old = draw.integers(0, 1 << 8 * kind.width, 50_000).astype(f"<u{kind.width}")
        old[:20_000] &= (1 << FLOAT_FIELDS[kind].mantissa_bits + 1) - 1
        changes = draw.integers(-3, 4, old.size) * 2.0 ** -draw.integers(0, 91, old.size)
        changes = changes.astype(format_of_sums(kind))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            usual = predict(old, changes, kind)
            assert torch.set_flush_denormal(True)
            try:
                flushed = predict(old, changes, kind)
            finally:
                torch.set_flush_denormal(False)
        for one, other in (
            (usual.patterns, flushed.patterns),
            (usual.contexts, flushed.contexts),
            (usual.is_next_above, flushed.is_next_above),
        ):
            assert np.array_equal(one, other)


@pytest.mark.slow
def test_the_number_of_threads_does_not_change_a_package(tmp_path: Path) -> None:
    trees = [tmp_path / "v1", tmp_path / "v2"]
    sides = [_merged(ElementKind.FLOAT16, rank=8, rows=600, columns=700, seed=seed) for seed in (1, 2)]
    for index, tree in enumerate(trees):
        tensors = {
            f"w{i}": ("F16", np.frombuffer(side[index], "<f2").reshape(600, 700)) for i, side in enumerate(sides)
        }
        write_tree(tree, {"m.safetensors": safetensors_file(tensors)})
    digests = set()
    for threads in ("1", "2", "3"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        out = tmp_path / threads
        subprocess.run([sys.executable, "-c", _BUILD, *trees, out], env=environment, check=True)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_packages_of_merged_adapters_use_it(tmp_path: Path) -> None:
    old, new = _merged(ElementKind.FLOAT16, rank=8)
    trees = []
    for name, side in (("v1", old), ("v2", new)):
        matrix = np.frombuffer(side, "<f2").reshape(256, 320)
        trees.append(write_tree(tmp_path / name, {"m.safetensors": safetensors_file({"w": ("F16", matrix)})}))
    built = build_package(trees[0], trees[1], tmp_path / "package")
    apply_package(trees[0], tmp_path / "package", tmp_path / "made", expected_target_hash=built.target_hash)
    assert built.codecs == {"low_rank": 1, "same": 1}

    # A reader of format 3 does not know it.
    raw = bytearray((tmp_path / "package").read_bytes())
    with PackageReader(tmp_path / "package") as reader:
        start = reader.position
        records = [replace(record, made=b"") for file in reader.header.files for record in reader.records(file)]
    raw[8] = 3
    (tmp_path / "package").write_bytes(raw[:start] + b"".join(record.to_bytes() for record in records))
    with pytest.raises(PackageFormatError, match="its format does not have"):
        apply_package(trees[0], tmp_path / "package", tmp_path / "again", expected_target_hash=built.target_hash)


def _payload(factors: bytes, values: int, kind: ElementKind = ElementKind.FLOAT16) -> Encoded:
    streams = [factors, *arrange_classes(np.zeros(values, f"<u{kind.width}"), np.zeros(values, np.uint8))]
    return Encoded(Layout.CLASSES, sum(map(len, streams)), pack(streams))


def _factors(**changes: object) -> bytes:
    sides = {"left": np.ones((20, 2)), "right": np.ones((30, 2)), "shift": 8}
    return b"".join(Factors(**{**sides, **changes}).to_streams())


def test_a_payload_made_by_hand_is_read() -> None:
    made = LowRank().decode(_payload(_factors(), 600), bytes(1200), ElementKind.FLOAT16, 1200)
    assert np.array_equal(np.frombuffer(made, "<f2"), np.full(600, 2 * 2.0**-8, "<f2"))


@pytest.mark.parametrize(
    ("factors", "match"),
    [
        (bytes(8), "rank 0"),
        (_factors(left=np.ones((4, MAX_RANK + 1)), right=np.ones((150, MAX_RANK + 1))), "rank 65"),
        (_factors(shift=MAX_SHIFT + 1), "shift 91"),
        (_factors(shift=-MAX_SHIFT - 1), "shift -91"),
        (_factors(right=np.ones((7, 2))), "7 columns for 600"),
        (_factors(left=np.ones((1, 2)), right=np.ones((600, 2))), "more numbers than"),
        (_factors(left=np.full((20, 2), MAX_FACTOR + 1.0)), "the highest is"),
        (_factors()[:50], "ends inside"),
    ],
)
def test_factors_that_make_no_matrix_are_refused(factors: bytes, match: str) -> None:
    with pytest.raises(PackageFormatError, match=match):
        read_factors(Streams(factors), 600)


def test_payloads_that_do_not_fit_are_refused() -> None:
    good = _payload(_factors(), 600)
    refused = [
        (good, bytes(1000), ElementKind.FLOAT16, 1200),
        (good, bytes(600), ElementKind.INT8, 600),
        (good, bytes(1202), ElementKind.FLOAT16, 1202),
        (Encoded(Layout.LEADING, good.plain_length, good.frame), bytes(1200), ElementKind.FLOAT16, 1200),
        (Encoded(Layout.CLASSES, good.plain_length - 1, good.frame), bytes(1200), ElementKind.FLOAT16, 1200),
        (_payload(_factors() + b"\0", 600), bytes(1200), ElementKind.FLOAT16, 1200),
        (good, b"", ElementKind.FLOAT16, 0),
    ]
    for encoded, source, kind, length in refused:
        with pytest.raises(PackageFormatError):
            LowRank().decode(encoded, source, kind, length)
