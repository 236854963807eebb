"""Tensors are found again under other names, in other shapes and with more rows."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulators.version_trees import safetensors_file, write_tree

from delta_updates import (
    IntegrityError,
    apply_in_place,
    apply_package,
    build_package,
    scan_tree,
    tree_hash,
    verify_tree,
)
from delta_updates.package import PackageReader, hash_of_made

Tensors = dict[str, tuple[str, np.ndarray]]
_DTYPES = ["F16", "BF16", "F32", "I8"]


def _weights(seed: int, dtype: str, shape: tuple[int, ...] = (64, 128)) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 0.02, shape)
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    if dtype == "I8":
        return (values * 1500).round().astype(np.int8).view(np.uint8)
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype])


def _moved(values: np.ndarray) -> np.ndarray:
    """Return neighbouring patterns: some one step up."""
    steps = np.random.default_rng(9).integers(0, 2, values.shape)
    patterns = values.view(f"<u{values.itemsize}")
    return (patterns + steps.astype(patterns.dtype)).view(values.dtype)


def _size(tmp_path: Path, old: Tensors, new: Tensors) -> float:
    """Return the package's size in bits for each value, after a round trip."""
    source = write_tree(tmp_path / "old", {"m.safetensors": safetensors_file(old)})
    target = write_tree(tmp_path / "new", {"m.safetensors": safetensors_file(new)})
    built = build_package(source, target, tmp_path / "package")
    apply_package(source, tmp_path / "package", tmp_path / "made", expected_target_hash=built.target_hash)
    verify_tree(tmp_path / "made", scan_tree(target))
    return 8 * built.package_bytes / sum(values.size for _, values in new.values())


@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_reshaped_tensor_is_still_the_same(tmp_path: Path, dtype: str) -> None:
    old = _weights(0, dtype)
    assert _size(tmp_path, {"w": (dtype, old)}, {"w": (dtype, _moved(old).reshape(128, 64))}) < 2.5


@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_renamed_tensor_is_found_by_its_values(tmp_path: Path, dtype: str) -> None:
    old = {f"layers.{i}.weight": (dtype, _weights(i, dtype)) for i in range(5)}
    new = {f"blocks.{i}.linear.w": (dtype, _moved(values)) for i, (_, values) in enumerate(old.values())}
    assert _size(tmp_path, old, new) < 2.5


@pytest.mark.parametrize("dtype", _DTYPES)
def test_layers_are_found_after_one_was_taken_out(tmp_path: Path, dtype: str) -> None:
    old = {f"layers.{i}.weight": (dtype, _weights(i, dtype)) for i in range(6)}
    values = [array for _, array in old.values()]
    new = {f"layers.{i}.weight": (dtype, _moved(array)) for i, array in enumerate(values[:2] + values[3:])}
    assert _size(tmp_path, old, new) < 2.5


@pytest.mark.parametrize("dtype", _DTYPES)
def test_rows_added_to_embeddings_travel_alone(tmp_path: Path, dtype: str) -> None:
    old, added = _weights(0, dtype, (300, 64)), _weights(1, dtype, (3, 64))
    assert _size(tmp_path, {"embedding": (dtype, old)}, {"embedding": (dtype, np.concatenate([old, added]))}) < 1
    grown = np.concatenate([_moved(old), added])
    assert _size(tmp_path / "moved", {"embedding": (dtype, old)}, {"embedding": (dtype, grown)}) < 2.5


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("is_trained", [False, True], ids=["as they were", "all moved"])
def test_rows_put_in_anywhere_travel_alone(tmp_path: Path, dtype: str, is_trained: bool) -> None:
    old, added = _weights(0, dtype, (600, 64)), _weights(1, dtype, (7, 64))
    kept = _moved(old) if is_trained else old
    # Three behind row 100, four behind row 400, and rows 200 to 250 are gone.
    grown = np.concatenate([kept[:100], added[:3], kept[100:200], kept[250:400], added[3:], kept[400:]])
    assert _size(tmp_path, {"embedding": (dtype, old)}, {"embedding": (dtype, grown)}) < (2.5 if is_trained else 0.6)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_rows_taken_out_of_the_middle_cost_nothing(tmp_path: Path, dtype: str) -> None:
    old = _weights(0, dtype, (600, 64))
    fewer = np.concatenate([old[:123], old[130:]])
    assert _size(tmp_path, {"embedding": (dtype, old)}, {"embedding": (dtype, fewer)}) < 0.2


def test_a_vocabulary_that_grew_by_many_rows_in_the_middle_is_found_by_rows_that_are_equal(tmp_path: Path) -> None:
    old, added = _weights(0, "F16", (2000, 64)), _weights(1, "F16", (300, 64))
    grown = np.concatenate([old[:500], added[:200], old[500:1500], added[200:], old[1500:]])
    # 300 of 2300 rows at 16 bits for each value, which nothing makes much smaller.
    assert _size(tmp_path, {"e": ("F16", old)}, {"e": ("F16", grown)}) < 16 * 300 / 2300


@pytest.mark.parametrize("dtype", _DTYPES)
def test_dropped_rows_and_tensors_cost_nothing(tmp_path: Path, dtype: str) -> None:
    old = {"embedding": (dtype, _weights(0, dtype, (300, 64))), "gone": (dtype, _weights(1, dtype))}
    assert _size(tmp_path, old, {"embedding": (dtype, old["embedding"][1][:250])}) < 1


def test_new_tensors_and_other_dtypes_travel_in_full(tmp_path: Path) -> None:
    old = {"a": ("F16", _weights(0, "F16")), "b": ("F16", _weights(1, "F16"))}
    new = {"a": ("F32", _weights(0, "F32")), "b": old["b"], "c": ("F16", _weights(2, "F16", (10, 10)))}
    assert 4 < _size(tmp_path, old, new) < 18


def test_tensors_without_values_are_no_trouble(tmp_path: Path) -> None:
    nothing = np.zeros((0, 8), "<f2")
    assert _size(tmp_path, {"w": ("F16", nothing)}, {"w": ("F16", nothing), "v": ("F16", np.ones((2, 8), "<f2"))}) > 0


def _trees(tmp_path: Path, old: dict[str, Tensors], new: dict[str, Tensors]) -> tuple[float, dict[str, str | None]]:
    """Return the package's size in bits for each value, and which file each file is made from."""
    trees = [
        write_tree(tmp_path / name, {path: safetensors_file(tensors) for path, tensors in files.items()})
        for name, files in (("old", old), ("new", new))
    ]
    built = build_package(trees[0], trees[1], tmp_path / "package")
    apply_package(trees[0], tmp_path / "package", tmp_path / "made", expected_target_hash=built.target_hash)
    verify_tree(tmp_path / "made", scan_tree(trees[1]))
    with PackageReader(tmp_path / "package") as reader:
        sources = {each.file.path: each.source.path if each.source else None for each in reader.header.files}
    values = sum(array.size for tensors in new.values() for _, array in tensors.values())
    return 8 * built.package_bytes / values, sources


def _layers(numbers: range, dtype: str, *, moved: bool = False) -> Tensors:
    layers = {f"layers.{i}.weight": _weights(i, dtype) for i in numbers}
    return {name: (dtype, _moved(values) if moved else values) for name, values in layers.items()}


def test_a_changed_file_is_found_under_another_name(tmp_path: Path) -> None:
    old = {"base/model.safetensors": _layers(range(4), "F16"), "base/other": _layers(range(9, 12), "F16")}
    new = {"weights/model-v2.safetensors": _layers(range(4), "F16", moved=True)}
    size, sources = _trees(tmp_path, old, new)
    assert size < 2.5
    assert sources == {"weights/model-v2.safetensors": "base/model.safetensors"}


def test_one_file_that_became_two_is_found_twice(tmp_path: Path) -> None:
    old = {"model.safetensors": _layers(range(6), "BF16")}
    new = {f"model-{i}": _layers(range(3 * i, 3 * i + 3), "BF16", moved=True) for i in range(2)}
    size, sources = _trees(tmp_path, old, new)
    assert size < 2.5
    assert sources == {"model-0": "model.safetensors", "model-1": "model.safetensors"}


@pytest.mark.parametrize("is_trained", [False, True], ids=["as they were", "all moved"])
def test_shards_that_became_one_file_are_found_all(tmp_path: Path, is_trained: bool) -> None:
    old = {f"model-{i}": _layers(range(3 * i, 3 * i + 3), "F16") for i in range(3)}
    new = {"model": _layers(range(9), "F16", moved=is_trained)}
    size, sources = _trees(tmp_path, old, new)
    assert size < (2.5 if is_trained else 0.2)
    assert sources == {"model": "model-0"}
    with PackageReader(tmp_path / "package") as reader:
        assert [entry.path for entry in reader.header.files[0].joined] == ["model-1", "model-2"]
    trees = [scan_tree(tmp_path / name) for name in ("old", "new")]
    (tmp_path / "journal").mkdir()
    in_place = shutil.copytree(tmp_path / "old", tmp_path / "in place")
    apply_in_place(in_place, tmp_path / "package", tmp_path / "journal", expected_target_hash=tree_hash(trees[1]))
    verify_tree(in_place, trees[1])


def test_a_record_that_makes_other_bytes_than_it_says_is_named(tmp_path: Path) -> None:
    trees = [
        write_tree(tmp_path / name, {"m": safetensors_file(_layers(range(3), "F16", moved=moved))})
        for name, moved in (("old", False), ("new", True))
    ]
    built = build_package(trees[0], trees[1], tmp_path / "package")
    with PackageReader(tmp_path / "package") as reader:
        first = reader.position
        records = list(reader.records(reader.header.files[0]))
    raw = (tmp_path / "package").read_bytes()[:first]
    records[-1] = replace(records[-1], made=hash_of_made([b"something else"]))
    (tmp_path / "package").write_bytes(raw + b"".join(record.to_bytes() for record in records))
    with pytest.raises(IntegrityError, match="DIFFERENCE makes other bytes"):
        apply_package(trees[0], tmp_path / "package", tmp_path / "made", expected_target_hash=built.target_hash)
    assert not (tmp_path / "made").exists()


def test_shards_that_traded_names_are_told_apart_by_their_tensors(tmp_path: Path) -> None:
    old = {f"model-{i}": _layers(range(3 * i, 3 * i + 3), "F32") for i in range(2)}
    new = {f"model-{i}": _layers(range(3 * (1 - i), 3 * (1 - i) + 3), "F32", moved=True) for i in range(2)}
    size, sources = _trees(tmp_path, old, new)
    assert size < 2.5
    assert sources == {"model-0": "model-1", "model-1": "model-0"}


def test_of_equally_good_files_the_one_of_the_same_path_is_taken(tmp_path: Path) -> None:
    old = {name: _layers(range(2), "F16") for name in "abc"}
    new = {"b": {f"renamed.{name}": tensor for name, tensor in _layers(range(2), "F16", moved=True).items()}}
    assert _trees(tmp_path, old, new)[1] == {"b": "b"}


def test_a_moved_text_is_patched(tmp_path: Path) -> None:
    words = "\n".join(f"token {n * 7919 % 1009}" for n in range(1500)).encode()
    source = write_tree(tmp_path / "old", {"base/tokenizer.json": words})
    target = write_tree(tmp_path / "new", {"tokenizer/tokenizer.json": words.replace(b"token 77", b"sign 77")})
    built = build_package(source, target, tmp_path / "package")
    assert built.codecs == {"patch": 1}
    assert built.package_bytes < 1500


def test_weights_in_other_files_are_copied_where_equal_and_never_patched(tmp_path: Path) -> None:
    before = _weights(0, "F32", (512, 256)).tobytes()
    after = before[:200_000] + _weights(1, "F32", (50, 256)).tobytes() + before[200_000:]
    source = write_tree(tmp_path / "old", {"pytorch_model.bin": before, "words.model": before})
    target = write_tree(tmp_path / "new", {"pytorch_model.bin": after, "words.model": after})
    built = build_package(source, target, tmp_path / "package")
    apply_package(source, tmp_path / "package", tmp_path / "made", expected_target_hash=built.target_hash)
    verify_tree(tmp_path / "made", scan_tree(target))
    # A tokenizer is patched, whatever it is called.
    assert built.codecs == {"full": 1, "patch": 1, "same": 2}
    assert built.package_bytes < 2 * 55_000
