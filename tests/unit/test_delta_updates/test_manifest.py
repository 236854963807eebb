"""Trees and manifests: one hash per content, and no second reading of any bytes."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from simulators.version_trees import write_tree

from delta_updates import (
    DeltaError,
    FileEntry,
    IntegrityError,
    PackageFormatError,
    StorageError,
    VersionManifest,
    base_hash,
    scan_tree,
    sha256_of,
    tree_hash,
    verify_tree,
)

_FILES = {"base/config.json": b"{}", "base/model.safetensors": b"weights", "adapter/a": b"x"}


def _manifest(files: tuple[FileEntry, ...], **changes: object) -> VersionManifest:
    facts = {"rounds": 2, "epsilon": 1.5, "run": "r-1", "is_private": True, "note": None}
    values = {"model": "smol", "version": 3, "kind": "adapter", "parent": 2, "facts": facts}
    values |= {"created_at": "2025-01-02T03:04:05+00:00", "files": files}
    return VersionManifest(**{"base_hash": base_hash(files), "tree_hash": tree_hash(files), **values, **changes})


@pytest.fixture
def files(tmp_path: Path) -> tuple[FileEntry, ...]:
    return scan_tree(write_tree(tmp_path / "tree", _FILES))


def test_scan_is_sorted_and_hashed(files: tuple[FileEntry, ...]) -> None:
    assert [entry.path for entry in files] == sorted(_FILES)
    assert files[1].sha256 == hashlib.sha256(b"{}").hexdigest()
    assert files[1].length == 2


def test_tree_hash_is_the_documented_one(files: tuple[FileEntry, ...]) -> None:
    lines = "".join(f"{entry.path}\0{entry.length}\0{entry.sha256}\n" for entry in files)
    assert tree_hash(files) == hashlib.sha256(lines.encode()).hexdigest()
    assert tree_hash(reversed(files)) == tree_hash(files)
    assert base_hash(files) == tree_hash(files[1:])
    assert base_hash(files) != tree_hash(files)


def test_tree_hash_of_nothing() -> None:
    assert tree_hash(()) == hashlib.sha256(b"").hexdigest()


def test_manifest_round_trip_keeps_types(files: tuple[FileEntry, ...]) -> None:
    manifest = _manifest(files)
    again = VersionManifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert {name: type(value) for name, value in again.facts.items()} == {
        name: type(value) for name, value in manifest.facts.items()
    }
    assert again.to_bytes() == manifest.to_bytes()
    assert b" " not in manifest.to_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "Has Spaces"},
        {"model": "x" * 65},
        {"version": 0},
        {"version": "3"},
        {"kind": "patch"},
        {"parent": 3},
        {"parent": 4},
        {"tree_hash": "0" * 64},
        {"base_hash": "0" * 64},
        {"created_at": "yesterday"},
        {"created_at": "2025-01-02T03:04:05+02:00"},
        {"created_at": "2025-01-02T03:04:05"},
        {"facts": {"epsilon": float("inf")}},
        {"facts": {"nested": {}}},
        {"extra": 1},
        {"format": 2},
    ],
)
def test_manifests_that_make_no_sense_are_refused(files: tuple[FileEntry, ...], change: dict) -> None:
    with pytest.raises(ValidationError):
        _manifest(files, **change)
    raw = json.dumps({**json.loads(_manifest(files).to_bytes()), **change}).encode()
    with pytest.raises(PackageFormatError):
        VersionManifest.from_bytes(raw)


def test_a_manifest_is_bounded(files: tuple[FileEntry, ...]) -> None:
    raw = _manifest(files).to_bytes()
    with pytest.raises(PackageFormatError, match="at most"):
        VersionManifest.from_bytes(raw, max_bytes=len(raw) - 1)


@settings(max_examples=200, deadline=None)
@given(raw=st.one_of(st.binary(max_size=200), st.just(b"[" * 100_000), st.just(b'{"facts":' * 9_999)))
def test_any_bytes_are_a_format_error(raw: bytes) -> None:
    with pytest.raises(PackageFormatError):
        VersionManifest.from_bytes(raw)


@pytest.mark.parametrize(
    "path",
    [
        "/a",
        "../a",
        "a/..",
        "a/../b",
        ".",
        "",
        "a//b",
        "C:a",
        "a\\b",
        "a\nb",
        "a\0",
        "x" * 256,
        "é" * 130,
        "a/" * 16 + "a",
    ],
)
def test_paths_that_lead_elsewhere(path: str) -> None:
    with pytest.raises(ValidationError):
        FileEntry(path=path, length=1, sha256="0" * 64)


@pytest.mark.parametrize("path", ["a", "base/model.safetensors", "a..b", ".hidden", "grüße/∆ 1", "a/" * 15 + "a"])
def test_paths_that_are_fine(path: str) -> None:
    assert FileEntry(path=path, length=1, sha256="0" * 64).path == path


def test_verify_finds_every_difference(tmp_path: Path, files: tuple[FileEntry, ...]) -> None:
    tree = tmp_path / "tree"
    verify_tree(tree, files)
    for damage in (
        lambda: (tree / "adapter/a").write_bytes(b"y"),
        (tree / "adapter/a").unlink,
        lambda: write_tree(tree, {"adapter/a": b"x", "more": b""}),
    ):
        damage()
        with pytest.raises(IntegrityError, match="missing, extra or different"):
            verify_tree(tree, files)


def test_special_files_are_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"a": b""})
    os.mkfifo(tree / "pipe")
    with pytest.raises(IntegrityError, match="special"):
        scan_tree(tree)
    (tree / "pipe").unlink()
    (tree / "link").symlink_to(tmp_path)
    with pytest.raises(IntegrityError, match="link"):
        scan_tree(tree)
    with pytest.raises(IntegrityError):
        scan_tree(tree / "link")


@pytest.mark.parametrize("names", [("a", "A"), ("new\nline",), ("back\\slash",)])
def test_names_that_no_version_may_hold(tmp_path: Path, names: tuple[str, ...]) -> None:
    tree = write_tree(tmp_path / "tree", dict.fromkeys(names, b""))
    with pytest.raises(IntegrityError):
        scan_tree(tree)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        scan_tree(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeltaError):
        scan_tree(tmp_path / "file")


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
