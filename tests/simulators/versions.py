"""Small versions on disk: valid files, random weights, no torch."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from delta_updates import VersionManifest, base_hash, scan_tree, tree_hash


def write_tree(folder: Path, *, base_seed: int = 0, adapter_seed: int | None = None, rows: int = 32) -> Path:
    """Write a tree of the shape devices know; equal seeds give equal bytes."""
    _write_tensors(folder / "base" / "model.safetensors", base_seed, rows)
    (folder / "base" / "config.json").write_text(json.dumps({"rows": rows}))
    (folder / "base" / "tokenizer.json").write_text(json.dumps({"vocabulary": ["a", "b"]}))
    (folder / "base" / "tokenizer_config.json").write_text("{}")
    if adapter_seed is not None:
        _write_tensors(folder / "adapter" / "adapter_model.safetensors", adapter_seed, 4)
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"r": 2}))
    return folder


def manifest_of(
    tree: Path,
    *,
    version: int,
    model: str = "tiny",
    parent: int | None = None,
    facts: Mapping[str, str | int | float | bool | None] | None = None,
) -> VersionManifest:
    """The manifest of a tree."""
    files = scan_tree(tree)
    return VersionManifest(
        model=model,
        version=version,
        kind="adapter" if (tree / "adapter").exists() else "base",
        parent=parent,
        base_hash=base_hash(files),
        tree_hash=tree_hash(files),
        files=files,
        created_at="2026-01-02T03:04:05+00:00",
        facts=dict(facts or {}),
    )


def _write_tensors(path: Path, seed: int, rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Neighbouring seeds give neighbouring weights, so that a delta between two versions is worth its name.
    shared = np.random.default_rng(7).normal(size=(rows, 64))
    own = np.random.default_rng(seed).normal(size=(rows, 64)) * 1e-3
    save_file({"layers.0.weight": (shared + own).astype(np.float16)}, path)
