"""Applying: exact, durable, all or nothing, and nothing it should not have trusted."""

import errno
from pathlib import Path

import pytest
from simulators.faulty_disk import FaultyDisk
from simulators.package_update import PackageUpdate
from simulators.version_trees import write_tree

from delta_updates import (
    DeltaError,
    IntegrityError,
    PackageFormatError,
    PackageLimitError,
    SourceMismatchError,
    StorageError,
    build_package,
    scan_tree,
    tree_hash,
    verify_tree,
    work_folder,
)


@pytest.fixture
def update(tmp_path: Path) -> PackageUpdate:
    return PackageUpdate(tmp_path)


def test_delta_makes_the_target_exactly(update: PackageUpdate) -> None:
    result = update.apply()

    verify_tree(update.slot, scan_tree(update.target))
    assert result.target_hash == update.built.target_hash == tree_hash(scan_tree(update.slot))
    assert result.files_linked == 2
    written = sum(entry.length for entry in scan_tree(update.target) if "config" not in entry.path)
    assert result.bytes_written == written - 5000


def test_full_package_needs_no_source(update: PackageUpdate) -> None:
    full = update.folder / "full.lmpkg"
    built = build_package(None, update.target, full)

    result = update.apply(source=None, package=full)

    verify_tree(update.slot, scan_tree(update.target))
    assert built.source_hash is None
    assert result.files_linked == 0


def test_unchanged_files_share_their_storage(update: PackageUpdate) -> None:
    update.apply()

    assert (update.slot / "base/config.json").samefile(update.source / "base/config.json")
    assert (update.slot / "base/renamed/new_name.bin").samefile(update.source / "base/old_name.bin")


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_copies_where_links_do_not_work(update: PackageUpdate, code: int) -> None:
    clean = update.disk()
    update.apply(disk=clean)
    update.slot.rename(update.folder / "first")
    at = next(number for number, name in enumerate(clean.operations, 1) if name.startswith("link"))

    result = update.apply(disk=update.disk(fail_at=at, code=code))

    verify_tree(update.slot, scan_tree(update.target))
    assert result.files_linked == 1


def test_a_file_replaced_after_its_check_is_not_linked(update: PackageUpdate) -> None:
    class SwappingDisk(FaultyDisk):
        def link(self, existing: Path, new: Path) -> None:
            existing.rename(existing.with_suffix(".checked"))
            existing.write_bytes(b"something else")
            super().link(existing, new)

    update.apply(disk=SwappingDisk(update.folder / "stash"))

    verify_tree(update.slot, scan_tree(update.target))


@pytest.mark.parametrize("name", ["base/config.json", "base/model.safetensors", "base/tokenizer.json"])
@pytest.mark.parametrize("damage", ["flip", "longer", "missing", "link", "folder"])
def test_a_damaged_source_is_found_before_anything_is_written(update: PackageUpdate, name: str, damage: str) -> None:
    path = update.source / name
    raw = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif damage == "longer":
        path.write_bytes(raw + b"x")
    elif damage == "link":
        (update.folder / "real").write_bytes(raw)
        path.symlink_to(update.folder / "real")
    elif damage == "folder":
        path.mkdir()
    disk = update.disk()

    with pytest.raises(SourceMismatchError):
        update.apply(disk=disk)

    assert disk.operations == []
    update.require_nothing_left()


def test_a_source_file_that_is_not_needed_may_differ(update: PackageUpdate) -> None:
    (update.source / "base/gone.txt").write_bytes(b"whatever")

    update.apply()

    verify_tree(update.slot, scan_tree(update.target))


def test_a_delta_without_a_source_is_refused(update: PackageUpdate) -> None:
    with pytest.raises(SourceMismatchError):
        update.apply(source=None)


def test_another_target_than_promised_is_refused(update: PackageUpdate) -> None:
    with pytest.raises(IntegrityError):
        update.apply(expected_target_hash="0" * 64)
    update.require_nothing_left()


def test_a_target_larger_than_allowed_is_refused(update: PackageUpdate) -> None:
    with pytest.raises(PackageLimitError):
        update.apply(max_target_bytes=update.built.target_bytes - 1)
    update.apply(max_target_bytes=update.built.target_bytes)


def test_too_little_space_is_said_before_writing(update: PackageUpdate) -> None:
    disk = update.disk(reports_free_bytes=1000)
    with pytest.raises(StorageError, match="1000 are free"):
        update.apply(disk=disk)
    assert not any(name.startswith(("create", "write", "make")) for name in disk.operations)


def test_what_is_in_the_way_stays(update: PackageUpdate) -> None:
    write_tree(update.slot, {"precious": b"1"})

    with pytest.raises(StorageError, match="in the way"):
        update.apply()

    assert (update.slot / "precious").read_bytes() == b"1"


def test_an_empty_folder_and_an_unfinished_apply_are_no_obstacle(update: PackageUpdate) -> None:
    update.slot.mkdir()
    write_tree(work_folder(update.slot), {"base/model.safetensors": b"half"})

    update.apply()

    verify_tree(update.slot, scan_tree(update.target))
    assert [path.name for path in update.slot.parent.iterdir()] == [update.slot.name]


def test_trailing_bytes_are_refused_and_nothing_stays(update: PackageUpdate) -> None:
    update.package.write_bytes(update.package.read_bytes() + b"\0")
    with pytest.raises(PackageFormatError, match="after the package's end"):
        update.apply()
    update.require_nothing_left()


def test_a_package_cut_off_anywhere_leaves_nothing(update: PackageUpdate) -> None:
    raw = update.package.read_bytes()
    for length in [*range(120), *range(120, len(raw), 997), len(raw) - 1]:
        update.package.write_bytes(raw[:length])
        with pytest.raises(PackageFormatError):
            update.apply()
        update.require_nothing_left()


def test_a_missing_package_is_a_storage_error(update: PackageUpdate) -> None:
    with pytest.raises(StorageError):
        update.apply(package=update.folder / "none")
    with pytest.raises(DeltaError):
        update.apply(package=update.folder)
