"""A tree that becomes another one where it lies: at every cut it is gone, or whole, and in the end it is the target."""

import errno
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulators.faulty_disk import FaultyDisk, Loses, PowerCut
from simulators.version_trees import safetensors_file, source_and_target, write_tree

from delta_updates import (
    InPlaceResult,
    IntegrityError,
    PackageFormatError,
    SourceMismatchError,
    StorageError,
    apply_in_place,
    build_package,
    changing_folder,
    moves,
    scan_tree,
    tree_hash,
    verify_tree,
)

FAST, SLOW = ("some", "unsynced"), ("nothing", "content")


class Device:
    """A tree, the version that it shall become, and the package."""

    def __init__(self, folder: Path, old: dict[str, bytes] | None, new: dict[str, bytes]) -> None:
        self.folder = folder
        self.source = None if old is None else write_tree(folder / "v1", old)
        self.target = write_tree(folder / "v2", new)
        self.package = folder / "package"
        self.built = build_package(self.source, self.target, self.package)
        self.home = folder / "home"
        self.tree, self.journal = self.home / "tree", self.home / "journal"
        self._stashes = 0
        self.reset()

    def reset(self) -> None:
        """Have the source again."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        if self.source:
            shutil.copytree(self.source, self.tree)

    def disk(self, **faults: Any) -> FaultyDisk:
        self._stashes += 1
        return FaultyDisk(self.folder / "stash" / str(self._stashes), **faults)

    def apply(self, **options: Any) -> InPlaceResult:
        options = {"expected_target_hash": self.built.target_hash, "disk": self.disk(), **options}
        return apply_in_place(
            options.pop("tree", self.tree), options.pop("package", self.package), self.journal, **options
        )

    def operations(self) -> int:
        disk = self.disk()
        self.apply(disk=disk)
        self.require_target()
        self.reset()
        return len(disk.operations)

    def require_target(self) -> None:
        verify_tree(self.tree, scan_tree(self.target))
        assert [path.name for path in self.home.iterdir()] == ["tree"]

    def require_untouched(self) -> None:
        assert self.source is not None
        verify_tree(self.tree, scan_tree(self.source))
        assert not changing_folder(self.tree).exists()

    def require_version_or_none(self) -> None:
        """What lies at `tree` is the source, the target, or nothing."""
        if self.tree.exists():
            hashes = {tree_hash(scan_tree(version)) for version in (self.source, self.target) if version}
            assert tree_hash(scan_tree(self.tree)) in hashes


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "STEP_BYTES", 16_000)
    monkeypatch.setattr(moves, "PIECE_BYTES", 3000)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a folder: hundreds of trees are made and thrown away."""
    memory = Path("/dev/shm")  # noqa: S108 - its content is made by `tempfile`
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, *source_and_target())


def moving_tensors() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Versions in which tensors change places in a circle, one grows, and the header too."""
    draw = np.random.default_rng(1)
    a, b, c, d = (draw.normal(0, 1, (60, 25)) for _ in range(4))

    def file(**tensors: Any) -> bytes:
        return safetensors_file({name: ("F16", array) for name, array in tensors.items()})

    source = {"m": file(a=a, b=b, c=c, d=d), "twin": b"t" * 3000, "gone": b"g" * 100}
    target = {
        "m": file(a=b * 1.01, b=c, c=a, d=np.concatenate([d, d[:9]]) * 1.01, another_name=d[:5]),
        "copies/one": b"t" * 3000,
        "copies/two": b"t" * 3000,
        "twin": b"something else",
    }
    return source, target


def test_it_becomes_the_target(device: Device) -> None:
    result = device.apply()
    device.require_target()
    assert result.target_hash == device.built.target_hash
    assert result.steps_resumed == 0
    # Unchanged files and tensors do not move.
    assert result.bytes_moved < device.built.target_bytes - 5000


@pytest.mark.parametrize("loses", [*FAST, *(pytest.param(loses, marks=pytest.mark.slow) for loses in SLOW)])
@pytest.mark.parametrize("versions", [source_and_target, moving_tensors])
def test_a_power_cut_at_any_operation(tmp_path: Path, versions: Any, loses: Loses) -> None:
    device = Device(tmp_path, *versions())
    resumed = 0
    for cut_at in range(1, device.operations() + 1):
        with pytest.raises(PowerCut):
            device.apply(disk=device.disk(cut_at=cut_at, loses=loses))
        device.require_version_or_none()
        resumed = max(resumed, device.apply().steps_resumed)
        device.require_target()
        device.reset()
    assert resumed > 2


@pytest.mark.parametrize("versions", [source_and_target, moving_tensors])
def test_cuts_at_any_operation_of_what_follows_a_cut(tmp_path: Path, versions: Any) -> None:
    device = Device(tmp_path, *versions())
    for first in range(4, device.operations(), 9):
        with pytest.raises(PowerCut):
            device.apply(disk=device.disk(cut_at=first, loses="some"))
        for again in itertools.count(1, 3):
            try:
                device.apply(disk=device.disk(cut_at=again, loses="some"))
            except PowerCut:
                device.require_version_or_none()
                continue
            break
        device.require_target()
        device.reset()


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_any_operation(device: Device, code: int) -> None:
    for fail_at in range(1, device.operations() + 1):
        with pytest.raises(StorageError):
            device.apply(disk=device.disk(fail_at=fail_at, code=code, stays_failed=code == errno.EROFS))
        device.require_version_or_none()
        device.apply()
        device.require_target()
        device.reset()


def test_a_full_package_makes_room_first(tmp_path: Path) -> None:
    device = Device(tmp_path, None, source_and_target()[1])
    write_tree(device.tree, {"old/version": b"x" * 10_000})
    device.apply()
    device.require_target()
    shutil.rmtree(device.tree)
    for cut_at in itertools.count(1):
        write_tree(device.tree, {"old/version": b"x" * 10_000})
        try:
            device.apply(disk=device.disk(cut_at=cut_at, loses="some"))
        except PowerCut:
            device.apply()
            device.require_target()
            device.reset()
            continue
        break
    assert cut_at > 30


def test_another_package_cannot_finish_but_a_full_one_can(device: Device) -> None:
    device.apply(disk=device.disk())
    device.reset()
    with pytest.raises(PowerCut):
        device.apply(disk=device.disk(cut_at=30, loses="nothing"))
    assert changing_folder(device.tree).exists()
    other = device.folder / "other"
    built = build_package(device.source, write_tree(device.folder / "v3", {"a": b"b"}), other)
    with pytest.raises(SourceMismatchError, match="half-way"):
        device.apply(package=other, expected_target_hash=built.target_hash)
    full = device.folder / "full"
    build_package(None, device.target, full)

    device.apply(package=full)

    device.require_target()


def test_done_twice_is_done(device: Device) -> None:
    device.apply()
    device.apply()
    device.require_target()


def test_a_lost_journal_is_not_guessed(device: Device) -> None:
    with pytest.raises(PowerCut):
        device.apply(disk=device.disk(cut_at=30, loses="nothing"))
    shutil.rmtree(device.journal)
    with pytest.raises(SourceMismatchError, match="half-way"):
        device.apply()


def test_damage_by_the_disk_is_found(device: Device) -> None:
    with pytest.raises(PowerCut):
        device.apply(disk=device.disk(cut_at=device_half(device), loses="nothing"))
    [path] = changing_folder(device.tree).rglob("config.json")
    path.write_bytes(b"damage" + path.read_bytes()[6:])
    for _ in range(2):
        with pytest.raises(IntegrityError, match="install the full package"):
            device.apply()
        assert not device.tree.exists()


def device_half(device: Device) -> int:
    return device.operations() // 2


@pytest.mark.parametrize("damage", ["source", "package", "expected", "records"])
def test_what_is_wrong_is_told_before_anything_changes(device: Device, damage: str) -> None:
    options: dict[str, Any] = {}
    if damage == "source":
        path = device.tree / "base/model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    elif damage == "expected":
        options["expected_target_hash"] = "0" * 64
    elif damage == "package":
        device.package.write_bytes(device.package.read_bytes()[:-1])
    else:
        raw = bytearray(device.package.read_bytes())
        raw[-30] ^= 1
        device.package.write_bytes(raw)
    before = scan_tree(device.tree)
    disk = device.disk()

    with pytest.raises((SourceMismatchError, IntegrityError, PackageFormatError)):
        device.apply(disk=disk, **options)

    assert disk.operations == []
    assert scan_tree(device.tree) == before


def test_too_little_scratch_is_told_before_anything_changes(tmp_path: Path) -> None:
    device = Device(tmp_path, *moving_tensors())
    needed = device.apply().scratch_bytes
    device.reset()
    assert 0 < needed < 40_000
    disk = device.disk()

    with pytest.raises(StorageError, match="scratch"):
        device.apply(disk=disk, max_scratch_bytes=needed - 1)

    assert disk.operations == []
    device.require_untouched()
    device.apply(max_scratch_bytes=needed)
    device.require_target()


def test_scratch_stays_within_what_was_said(tmp_path: Path) -> None:
    device = Device(tmp_path, *moving_tensors())
    most = 0

    def watch(_done: int, _total: int) -> None:
        nonlocal most
        inside = [path for path in device.journal.iterdir() if path.name != "journal"]
        most = max(most, sum(path.stat().st_size for path in inside))

    said = device.apply(on_progress=watch).scratch_bytes

    assert 0 < most <= said


def test_too_little_room_is_told_before_anything_changes(device: Device) -> None:
    disk = device.disk(reports_free_bytes=1000)
    with pytest.raises(StorageError, match="free some space"):
        device.apply(disk=disk)
    assert disk.operations == []


def test_a_file_that_another_version_shares_is_not_changed(device: Device) -> None:
    shared = device.folder / "shared"
    shared.hardlink_to(device.tree / "base/model.safetensors")
    with pytest.raises(StorageError, match="shares its storage"):
        device.apply()
    device.require_untouched()
    shared.unlink()
    # What does not change may be shared.
    (device.folder / "config").hardlink_to(device.tree / "base/config.json")
    device.apply()
    device.require_target()


def test_a_shared_file_is_not_shortened(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(5000)
    device = Device(tmp_path, {"t": noise + b"tail"}, {"t": noise})
    assert device.built.codecs == {"patch": 1}
    (device.folder / "shared").hardlink_to(device.tree / "t")
    with pytest.raises(StorageError, match="shares its storage"):
        device.apply()
    assert (device.folder / "shared").read_bytes() == noise + b"tail"


def test_a_folder_behind_a_link_is_not_changed(device: Device) -> None:
    (device.tree / "base").rename(device.folder / "elsewhere")
    (device.tree / "base").symlink_to(device.folder / "elsewhere")
    with pytest.raises(SourceMismatchError, match="behind a link"):
        device.apply()
    verify_tree(device.folder / "elsewhere", scan_tree(device.source / "base"))


def test_two_at_once_are_refused(device: Device) -> None:
    refused = []

    def try_another(_done: int, _total: int) -> None:
        with pytest.raises(StorageError, match="another process"):
            device.apply()
        refused.append(True)

    device.apply(on_progress=try_another)

    assert refused
    device.require_target()


def test_progress_ends_with_everything(device: Device) -> None:
    seen: list[tuple[int, int]] = []
    device.apply(on_progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (device.built.target_bytes, device.built.target_bytes)


_NAMES = st.sampled_from(["a", "b", "c", "d/e", "d/f"])
_BLOCKS = st.lists(st.integers(0, 7), max_size=12)


def made_of(numbers: dict[str, list[int]], scale: float) -> dict[str, bytes]:
    """Files whose tensors are the same few blocks, in any order: between two of them nearly everything has moved."""
    blocks = [np.random.default_rng(number).normal(0, scale, 300 + 7 * number) for number in range(8)]
    return {
        name: safetensors_file({f"t{at}": ("F16", blocks[number]) for at, number in enumerate(of)})
        for name, of in numbers.items()
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    old=st.dictionaries(_NAMES, _BLOCKS, max_size=4),
    new=st.dictionaries(_NAMES, _BLOCKS, max_size=4),
    scale=st.sampled_from([1.0, 1.001]),
    cut=st.integers(1, 150),
    loses=st.sampled_from(["nothing", "unsynced", "content", "some"]),
)
def test_any_tree_becomes_any_other(
    tmp_path_factory: pytest.TempPathFactory,
    old: dict[str, list[int]],
    new: dict[str, list[int]],
    scale: float,
    cut: int,
    loses: Loses,
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    device = Device(folder, made_of(old, 1.0), made_of(new, scale))
    try:
        device.apply(disk=device.disk(cut_at=cut, loses=loses))
    except PowerCut:
        device.require_version_or_none()
        device.apply()
    device.require_target()
    shutil.rmtree(folder)
