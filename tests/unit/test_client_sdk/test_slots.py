"""A/B slots: the pointer, and what is read through it."""

import os
from pathlib import Path

import pytest
from simulators.faulty_disk import FaultyDisk, Loses, PowerCut
from simulators.versions import manifest_of, write_tree

from client_sdk.disk import LocalDisk
from client_sdk.errors import DeviceDiskError
from client_sdk.slots import TREE, SlotStore, bytes_to_write
from delta_updates import VersionManifest
from delta_updates.unfinished import work_folder


def fill(slots: SlotStore, version: int) -> VersionManifest:
    """Put a version into the free slot and name it test."""
    slot, folder = slots.prepare()
    manifest = manifest_of(write_tree(folder / TREE, base_seed=version), version=version)
    slots.begin_test(slot, manifest, f"offer-{version}")
    return manifest


def test_a_version_serves_only_after_it_is_confirmed(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    assert slots.active() is None
    first = fill(slots, 1)
    assert slots.active() is None
    slots.confirm()
    active = slots.active()
    assert active is not None
    assert active.manifest == first
    fill(slots, 2)
    assert slots.active() == active
    slots.revert()
    assert slots.active() == active
    assert slots.pointer().test is None


def test_the_slots_alternate_and_the_serving_one_is_never_cleared(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    used = []
    for version in range(1, 5):
        fill(slots, version)
        used.append(slots.confirm().slot)
        assert (tmp_path / "slots" / used[-1] / "tree").is_dir()
    assert used == ["a", "b", "a", "b"]


def test_a_slot_in_test_is_not_overwritten(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    fill(slots, 1)
    with pytest.raises(ValueError, match="in test"):
        slots.prepare()


def test_starts_of_the_self_test_are_counted(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    fill(slots, 1)
    assert [slots.count_boot(), slots.count_boot(), slots.count_boot(-1)] == [1, 2, 1]


def test_a_damaged_pointer_reads_as_nothing_installed(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    fill(slots, 1)
    slots.confirm()
    (tmp_path / "slots" / "active.json").write_text('{"confirmed": "all of them"}')
    assert slots.active() is None


@pytest.mark.parametrize("damage", ["missing", "short", "other manifest"])
def test_a_slot_that_is_not_whole_does_not_serve(tmp_path: Path, damage: str) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    fill(slots, 1)
    slots.confirm()
    weights = tmp_path / "slots/a/tree/base/model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "short":
        os.truncate(weights, 10)
    else:
        other = manifest_of(write_tree(tmp_path / "other", base_seed=9), version=1)
        (tmp_path / "slots/a/manifest.json").write_bytes(other.to_bytes())
    assert slots.active() is None


def test_the_counter_survives_in_the_pointer(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    slots.keep_counter(7, "c" * 64)
    slots.keep_counter(3, "d" * 64)
    assert (slots.pointer().highest_version, slots.pointer().highest_hash) == (7, "c" * 64)


def test_a_full_disk_is_told_in_words(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", FaultyDisk(tmp_path / "stash", space_bytes=5))
    with pytest.raises(DeviceDiskError, match=r"became full while switching slots\. Free some space"):
        slots.keep_counter(1, None)


@pytest.mark.parametrize("loses", ["nothing", "unsynced", "content"])
def test_a_power_cut_at_any_write_of_the_switch_leaves_old_or_new(tmp_path: Path, loses: Loses) -> None:
    def prepared(name: str, disk: FaultyDisk) -> SlotStore:
        folder = tmp_path / name / "slots"
        fill(SlotStore(folder, LocalDisk()), 1)
        SlotStore(folder, LocalDisk()).confirm()
        fill(SlotStore(folder, LocalDisk()), 2)
        return SlotStore(folder, disk)

    clean = FaultyDisk(tmp_path / "stash")
    prepared("clean", clean).confirm()
    seen = set()
    for cut_at in range(1, len(clean.operations) + 1):
        slots = prepared(str(cut_at), FaultyDisk(tmp_path / f"stash{cut_at}", cut_at=cut_at, loses=loses))
        with pytest.raises(PowerCut):
            slots.confirm()
        pointer = SlotStore(tmp_path / str(cut_at) / "slots", LocalDisk()).pointer()
        assert pointer.confirmed is not None
        is_new = pointer.test is None
        assert (pointer.confirmed.version, pointer.highest_version) == ((2, 2) if is_new else (1, 1))
        seen.add(pointer.confirmed.version)
    # Only the last step may already show the new version, and only when the rename reached the disk by itself.
    assert seen == ({1} if loses == "unsynced" else {1, 2})


def test_only_files_that_differ_need_room(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    fill(slots, 1)
    slots.confirm()
    with_adapter = manifest_of(write_tree(tmp_path / "next", base_seed=1, adapter_seed=1), version=2)
    adapter = sum(entry.length for entry in with_adapter.files if entry.path.startswith("adapter/"))
    assert bytes_to_write(with_adapter, slots.active()) == adapter
    assert bytes_to_write(with_adapter, None) == sum(entry.length for entry in with_adapter.files)


def test_only_unfinished_work_on_the_same_tree_outlives_a_clearing(tmp_path: Path) -> None:
    slots = SlotStore(tmp_path / "slots", LocalDisk())
    _, folder = slots.prepare()
    for name in (TREE, "v2"):
        work_folder(folder / name).mkdir()
    (folder / "v1").mkdir()
    _, again = slots.prepare(TREE)
    assert again == folder
    assert list(folder.iterdir()) == [work_folder(folder / TREE)]
    slots.prepare()
    assert list(folder.iterdir()) == []
