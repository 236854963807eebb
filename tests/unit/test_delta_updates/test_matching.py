"""Tensors are found again under other names, in other shapes and with more rows."""

from pathlib import Path

import numpy as np
import pytest
from simulators.version_trees import safetensors_file, write_tree

from delta_updates import apply_package, build_package, scan_tree, verify_tree

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
