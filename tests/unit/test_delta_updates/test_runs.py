"""What two byte strings share, and the packages that come of it where values have no steps."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from delta_updates import apply_package, build_package
from delta_updates.runs import Run, equal_runs, moved_runs

BYTES = np.random.default_rng(7).integers(0, 256, 60_000, dtype=np.uint8).tobytes()
EDITS = st.lists(st.tuples(st.integers(0, len(BYTES)), st.binary(max_size=300), st.integers(0, 5000)), max_size=5)


def require_right(runs: list[Run], new: bytes, old: bytes, *, least: int) -> None:
    assert [run.start for run in runs] == [0, *(run.end for run in runs[:-1])] if runs else not new
    assert not runs or runs[-1].end == len(new)
    for run in runs:
        assert run.end > run.start
        if run.source is not None:
            length = run.end - run.start
            assert length >= least
            assert old[run.source : run.source + length] == new[run.start : run.end]


@given(edits=EDITS, least=st.sampled_from([1, 96]))
def test_moved_runs_say_what_is_there(edits: list[tuple[int, bytes, int]], least: int) -> None:
    new = BYTES
    for place, put, taken in edits:
        new = new[:place] + put + new[place + taken :]
    require_right(moved_runs(new, BYTES, least=least), new, BYTES, least=least)


@given(new=st.binary(max_size=400), old=st.binary(max_size=400))
def test_moved_runs_of_any_bytes(new: bytes, old: bytes) -> None:
    require_right(moved_runs(new, old, least=1), new, old, least=1)


@given(places=st.lists(st.integers(0, 9_999), max_size=9), length=st.integers(1, 10_000))
def test_equal_runs_say_what_is_there(places: list[int], length: int) -> None:
    new = bytearray(BYTES[:length])
    for place in places:
        new[place % length] ^= 1
    runs = equal_runs(bytes(new), BYTES[:length], least=96)
    require_right(runs, bytes(new), BYTES[:length], least=96)
    assert all(run.source in {None, run.start} for run in runs)
    assert all((one.source is None) != (other.source is None) for one, other in itertools.pairwise(runs))


def test_an_edit_costs_what_is_beside_it() -> None:
    runs = moved_runs(BYTES[:30_000] + b"put in" + BYTES[30_000:], BYTES, least=96)
    assert [run.source for run in runs] == [0, None, 30_000]
    # A window that happens to go on like what was put in is no matter.
    assert runs[1].end - runs[1].start <= 6


def package_of(old: Path, new: Path, folder: Path) -> int:
    """Bytes of the package, which was applied and compared."""
    built = build_package(old, new, folder / "package")
    apply_package(old, folder / "package", folder / "again", expected_target_hash=built.target_hash)
    for file in new.iterdir():
        assert (folder / "again" / file.name).read_bytes() == file.read_bytes()
    return built.package_bytes


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint16", "uint32", "float64"])
def test_a_few_changed_numbers_travel_alone(dtype: str, tmp_path: Path) -> None:
    old = np.random.default_rng(1).integers(0, 2**15, 1 << 16).astype(dtype)
    new = old.copy()
    new[:: 1 << 14] += 1
    for name, values in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        save_file({"t": values}, tmp_path / name / "model.safetensors")
    assert package_of(tmp_path / "old", tmp_path / "new", tmp_path) < 2_500


EDITED: dict[str, Callable[[bytes], bytes]] = {
    "a byte": lambda raw: raw[:1000] + b"!" + raw[1001:],
    "put in": lambda raw: raw[:1000] + b"a new entry" + raw[1000:],
    "taken out": lambda raw: raw[:1000] + raw[2000:],
    "in three places": lambda raw: b"x" + raw[:2_000_000] + b"y" + raw[2_000_000:] + b"z",
}


@pytest.mark.parametrize("edit", EDITED)
def test_an_edit_of_a_large_text_travels_alone(edit: str, tmp_path: Path) -> None:
    raw = np.random.default_rng(2).integers(32, 127, 5 << 20).astype(np.uint8).tobytes()
    for name, content in (("old", raw), ("new", EDITED[edit](raw))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_bytes(content)
    assert package_of(tmp_path / "old", tmp_path / "new", tmp_path) < 5_000


def test_large_texts_that_share_nothing_travel_whole(tmp_path: Path) -> None:
    for seed, name in ((3, "old"), (4, "new")):
        (tmp_path / name).mkdir()
        raw = np.random.default_rng(seed).integers(0, 256, 5 << 20, dtype=np.uint8).tobytes()
        (tmp_path / name / "vocabulary.bin").write_bytes(raw)
    assert (5 << 20) < package_of(tmp_path / "old", tmp_path / "new", tmp_path) < (5 << 20) + 5_000
