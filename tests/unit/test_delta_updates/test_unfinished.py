"""An apply that was cut off goes on from what it had made, and believes none of it unread."""

import errno
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from simulators.faulty_disk import Loses, PowerCut
from simulators.package_update import PackageUpdate

from delta_updates import (
    ApplyResult,
    IntegrityError,
    PackageFormatError,
    StorageError,
    build_package,
    drop_unfinished,
    scan_tree,
    unfinished,
    verify_tree,
    work_folder,
)

MODEL = "base/model.safetensors"


@pytest.fixture
def update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageUpdate:
    monkeypatch.setattr(unfinished, "CHECKPOINT_BYTES", 10_000)
    return PackageUpdate(tmp_path)


def cut_off(update: PackageUpdate, at: str, *, nth: int = 1, **faults: Any) -> list[str]:
    """Apply until the power goes at the n-th operation of this name; return the operations until then."""
    clean = update.disk()
    update.apply(disk=clean)
    shutil.rmtree(update.slot)
    numbers = [number for number, name in enumerate(clean.operations, 1) if name == at]
    with pytest.raises(PowerCut):
        update.apply(disk=update.disk(cut_at=numbers[nth - 1], loses="nothing", **faults))
    return clean.operations


def count_operations(update: PackageUpdate) -> int:
    disk = update.disk()
    update.apply(disk=disk)
    update.require_complete()
    shutil.rmtree(update.slot)
    return len(disk.operations)


@pytest.mark.parametrize("loses", ["nothing", "unsynced", "content", "some"])
def test_a_power_cut_at_any_operation(update: PackageUpdate, loses: Loses) -> None:
    total = update.built.target_bytes
    resumed = []
    for cut_at in range(1, count_operations(update) + 1):
        with pytest.raises(PowerCut):
            update.apply(disk=update.disk(cut_at=cut_at, loses=loses))
        if update.slot.exists():
            verify_tree(update.slot, scan_tree(update.target))

        result = update.apply(disk=update.disk())

        update.require_complete()
        shutil.rmtree(update.slot)
        resumed.append(result.bytes_resumed)
    assert resumed[0] == 0
    assert max(resumed) > total * 3 // 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_any_operation(update: PackageUpdate, code: int) -> None:
    resumed = 0
    stays = code == errno.EROFS
    for fail_at in range(1, count_operations(update) + 1):
        try:
            update.apply(disk=update.disk(fail_at=fail_at, code=code, stays_failed=stays))
        except StorageError:
            # Only the very last step may have failed after the switch.
            if update.slot.exists():
                verify_tree(update.slot, scan_tree(update.target))
            resumed = max(resumed, update.apply(disk=update.disk()).bytes_resumed)
        else:
            # What cannot be removed after the switch is left for the next one.
            drop_unfinished(update.slot)
        update.require_complete()
        shutil.rmtree(update.slot)
    assert resumed > update.built.target_bytes // 2


def test_a_cut_at_any_operation_of_what_follows_a_cut(update: PackageUpdate) -> None:
    count = count_operations(update)
    for first in range(5, count, 7):
        with pytest.raises(PowerCut):
            update.apply(disk=update.disk(cut_at=first, loses="some"))
        for again in itertools.count(1):
            try:
                update.apply(disk=update.disk(cut_at=again, loses="some"))
            except PowerCut:
                continue
            break
        update.require_complete()
        shutil.rmtree(update.slot)


def test_the_beginning_of_a_file_survives_a_loss_of_all_that_is_not_durable(update: PackageUpdate) -> None:
    clean = update.disk()
    update.apply(disk=clean)
    shutil.rmtree(update.slot)
    syncs = [number for number, name in enumerate(clean.operations, 1) if name == "sync model.safetensors"]
    found = []
    for cut_at in (syncs[1] - 1, syncs[1] + 3, syncs[2] + 3):
        with pytest.raises(PowerCut):
            update.apply(disk=update.disk(cut_at=cut_at))
        found.append(update.apply(disk=update.disk()).bytes_resumed)
        shutil.rmtree(update.slot)
    assert found[0] + 10_000 <= found[1]
    assert found[1] + 10_000 <= found[2]


def test_what_was_made_is_not_made_again(update: PackageUpdate) -> None:
    operations = cut_off(update, "rename b")
    disk = update.disk()

    result = update.apply(disk=disk)

    assert result.bytes_written == 0
    lengths = {entry.path: entry.length for entry in scan_tree(update.target)}
    linked = lengths["base/config.json"] + lengths["base/renamed/new_name.bin"]
    assert result.bytes_resumed == sum(lengths.values()) - linked
    assert result.files_linked == 2
    assert sum(name.startswith("write") for name in operations) > 5
    assert [name for name in disk.operations if name.startswith(("write", "create"))] == ["create empty"]


def test_an_apply_cut_off_after_its_switch_is_finished(update: PackageUpdate) -> None:
    cut_off(update, "sync slots/", nth=2)
    assert update.slot.exists()
    assert work_folder(update.slot).exists()

    result = update.apply()

    assert result.bytes_resumed == update.built.target_bytes
    update.require_complete()


@pytest.mark.parametrize("left", [None, "empty", "other"])
def test_an_apply_cut_off_while_it_removed_what_it_worked_with_is_finished(
    update: PackageUpdate, left: str | None
) -> None:
    update.apply()
    if left:
        work_folder(update.slot).mkdir()
    if left == "other":
        (work_folder(update.slot) / "journal").write_text("of another package\n")
    disk = update.disk()

    result = update.apply(disk=disk)

    assert result.bytes_resumed == update.built.target_bytes
    assert not any(name.startswith(("create", "write", "make")) for name in disk.operations)
    update.require_complete()
    assert not work_folder(update.slot).exists()


def test_a_target_changed_after_the_switch_is_in_the_way(update: PackageUpdate) -> None:
    cut_off(update, "sync slots/", nth=2)
    (update.slot / MODEL).write_bytes(b"edited")
    with pytest.raises(StorageError, match="in the way"):
        update.apply()


def half_made(update: PackageUpdate) -> Path:
    """Cut at the end of the model's file, and return where it lies."""
    cut_off(update, "sync model.safetensors", nth=5)
    return work_folder(update.slot) / "tree" / MODEL


@pytest.mark.parametrize("damage", ["flip", "short", "missing", "folder", "link"])
def test_damage_in_what_was_kept_costs_what_followed_it(update: PackageUpdate, damage: str) -> None:
    path = half_made(update)
    raw = bytearray(path.read_bytes())
    assert len(raw) > 40_000
    undamaged = update.folder / "elsewhere"
    undamaged.write_bytes(raw)
    path.unlink()
    if damage == "flip":
        raw[25_000] ^= 1
        path.write_bytes(raw)
    elif damage == "short":
        path.write_bytes(raw[:25_000])
    elif damage == "folder":
        path.mkdir()
    elif damage == "link":
        path.symlink_to(undamaged)

    tree = work_folder(update.slot) / "tree"
    files = (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    others = sum(file.stat().st_size for file in files if file.name != path.name and file.stat().st_nlink == 1)

    result = update.apply()

    update.require_complete()
    kept = result.bytes_resumed - others
    assert 10_000 <= kept <= 25_000 if damage in {"flip", "short"} else kept == 0


def test_a_kept_file_with_another_name_is_not_written_to(update: PackageUpdate) -> None:
    cut_off(update, "sync model.safetensors", nth=3)
    path = work_folder(update.slot) / "tree" / MODEL
    other = update.folder / "other"
    other.hardlink_to(path)
    before = other.read_bytes()

    update.apply()

    assert other.read_bytes() == before
    update.require_complete()


def test_a_forged_journal_costs_one_more_round(update: PackageUpdate) -> None:
    path = half_made(update)
    path.write_bytes(b"x" * 20_000)
    journal = work_folder(update.slot) / "journal"
    first = journal.read_text().splitlines()[0]
    digest = hashlib.sha256(b"x" * 20_000).hexdigest()
    line = json.dumps({"length": 20_000, "path": MODEL, "sha256": digest}, separators=(",", ":"))
    journal.write_text(f"{first}\n{line}\n")

    result = update.apply()

    assert result.bytes_resumed == 0
    update.require_complete()


@pytest.mark.parametrize("raw", [b"", b"\n", b"{}", b"\xff" * 100, b"0" * 64 + b"\n"])
def test_a_journal_that_says_something_else_is_discarded(update: PackageUpdate, raw: bytes) -> None:
    half_made(update)
    (work_folder(update.slot) / "journal").write_bytes(raw)
    assert update.apply().bytes_resumed == 0
    update.require_complete()


def test_the_rest_of_a_torn_journal_is_cut_off(update: PackageUpdate) -> None:
    half_made(update)
    journal = work_folder(update.slot) / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20] + b"\n" + b"garbage")
    before = update.disk(cut_at=6, loses="nothing")
    with pytest.raises(PowerCut):
        update.apply(disk=before)
    assert journal.read_bytes().startswith(b"".join(lines[:-1]))
    assert b"garbage" not in journal.read_bytes()
    assert update.apply().bytes_resumed > 10_000


def test_another_package_starts_anew(update: PackageUpdate) -> None:
    half_made(update)
    full = update.folder / "full.lmpkg"
    build_package(None, update.target, full)

    result = update.apply(source=None, package=full)

    assert result.bytes_resumed == 0
    update.require_complete()


def test_bad_bytes_leave_nothing_to_resume(update: PackageUpdate) -> None:
    half_made(update)
    raw = bytearray(update.package.read_bytes())
    raw[-20] ^= 1
    update.package.write_bytes(raw)
    with pytest.raises(PackageFormatError):
        update.apply()
    update.require_nothing_left()


def test_what_was_never_asked_for_is_not_published(update: PackageUpdate) -> None:
    tree = half_made(update).parent.parent
    (tree / "base" / "extra").write_bytes(b"1")
    (tree / "more").mkdir()
    (tree / "more" / "of it").write_bytes(b"2")
    (tree / "outside").symlink_to(update.source)

    update.apply()

    update.require_complete()
    assert (update.source / MODEL).exists()


def test_two_at_once_are_refused(update: PackageUpdate) -> None:
    refused: list[StorageError] = []

    def try_another(_done: int, _total: int) -> None:
        if not refused:
            for another in (update.apply, lambda: drop_unfinished(update.slot)):
                with pytest.raises(StorageError, match="another process") as caught:
                    another()
                refused.append(caught.value)

    update.apply(on_progress=try_another)

    assert len(refused) == 2
    update.require_complete()


def test_progress_counts_the_targets_bytes(update: PackageUpdate) -> None:
    seen: list[tuple[int, int]] = []
    update.apply(on_progress=lambda done, total: seen.append((done, total)))
    done = [progress for progress, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (update.built.target_bytes, update.built.target_bytes)
    assert len(seen) > 10


def test_a_callback_that_raises_is_a_cut(update: PackageUpdate) -> None:
    class CancelledError(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        if done > total // 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        update.apply(on_progress=cancel)
    seen: list[int] = []

    result: ApplyResult = update.apply(on_progress=lambda done, _total: seen.append(done))

    assert result.bytes_resumed > 0
    assert seen[-1] == update.built.target_bytes
    update.require_complete()


def test_dropping_what_is_unfinished(update: PackageUpdate) -> None:
    drop_unfinished(update.slot)
    half_made(update)
    drop_unfinished(update.slot)
    update.require_nothing_left()


def test_a_source_that_shrinks_meanwhile_is_an_integrity_error(update: PackageUpdate) -> None:
    with pytest.raises(IntegrityError):
        update.apply(on_progress=lambda *_: (update.source / MODEL).write_bytes(b""))
    update.require_nothing_left()
