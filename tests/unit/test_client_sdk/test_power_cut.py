"""The power goes at each disk operation of an update; the next start must find the old version or the new one."""

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from simulators.faulty_disk import FaultyDisk, Loses, PowerCut
from simulators.update_service import FakeUpdateService
from simulators.versions import write_tree

from client_sdk import Device, DeviceDiskError, OfferRefusedError, SelfTestError
from delta_updates import ChainStep, verify_tree

OpenDevice = Callable[..., Device]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a folder: hundreds of devices are made and thrown away."""
    memory = Path("/dev/shm")  # noqa: S108 - its content is made by `tempfile`
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    "loses",
    ["unsynced", *(pytest.param(loses, marks=pytest.mark.slow) for loses in ("nothing", "content", "some"))],
)
def test_a_power_cut_at_any_operation(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, loses: Loses
) -> None:
    home, kept = tmp_path / "home", tmp_path / "kept"
    open_device().update()
    service.publish(write_tree(tmp_path / "v2", base_seed=1, adapter_seed=2), version=2, deltas_from=(1,))
    shutil.copytree(home, kept, symlinks=True)
    clean = FaultyDisk(tmp_path / "stash")
    open_device(disk=clean).update()
    served_at_restart = []
    for cut_at in range(1, len(clean.operations) + 1):
        shutil.rmtree(home)
        shutil.copytree(kept, home, symlinks=True)
        service.reports.clear()
        with pytest.raises(PowerCut):
            open_device(disk=FaultyDisk(tmp_path / f"stash-{cut_at}", cut_at=cut_at, loses=loses)).update()
        active = open_device().active()
        verify_tree(active.tree, active.manifest.files)
        served_at_restart.append(active.manifest.version)
        open_device(disk=FaultyDisk(tmp_path / f"stash2-{cut_at}")).update()
        active = open_device().active()
        verify_tree(active.tree, active.manifest.files)
        assert active.manifest.version == 2, f"cut at {cut_at}: {clean.operations[cut_at - 1]}"
        assert (2, "confirmed") in service.outcomes()
        assert not {"reverted", "failed"} & {outcome for _, outcome in service.outcomes()}
    # Old until the switch, new from then on: never anything else, and never back.
    assert served_at_restart == sorted(served_at_restart)
    assert set(served_at_restart) == {1, 2}


@pytest.mark.slow
def test_a_power_cut_at_any_operation_of_a_revert(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    def broken(_tree: Path, _manifest: object) -> None:
        raise SelfTestError("broken")

    home, kept = tmp_path / "home", tmp_path / "kept"
    open_device().update()
    service.publish(write_tree(tmp_path / "v2", base_seed=1), version=2, deltas_from=(1,))
    shutil.copytree(home, kept, symlinks=True)
    clean = FaultyDisk(tmp_path / "stash")
    open_device(disk=clean, test_version=broken).update()
    for cut_at in range(len(clean.operations) * 2 // 3, len(clean.operations) + 1):
        shutil.rmtree(home)
        shutil.copytree(kept, home, symlinks=True)
        with pytest.raises(PowerCut):
            open_device(disk=FaultyDisk(tmp_path / f"stash-{cut_at}", cut_at=cut_at), test_version=broken).update()
        for _ in range(2):
            try:
                open_device(test_version=broken).update()
            except OfferRefusedError:
                continue
        status = open_device().status()
        assert (status.version, status.in_test, status.failed_versions) == (1, None, (2,))


@pytest.mark.slow
def test_a_power_cut_at_any_operation_of_a_chain(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice
) -> None:
    home, kept = tmp_path / "home", tmp_path / "kept"
    open_device().update()
    for version in (2, 3):
        tree = write_tree(tmp_path / f"v{version}", base_seed=1, adapter_seed=version)
        service.publish(tree, version=version, deltas_from=(version - 1,))
    steps = tuple(
        ChainStep(
            version=version,
            tree_hash=service.published[version].tree_hash,
            manifest_path=f"manifests/{service.model}/{version}.json",
            package=service.published[version].packages[version - 1],
        )
        for version in (2, 3)
    )
    service.on_offer = lambda offer: offer.model_copy(update={"chain": steps})
    shutil.copytree(home, kept, symlinks=True)
    clean = FaultyDisk(tmp_path / "stash")
    assert open_device(disk=clean).update().package == "chain"
    for cut_at in range(1, len(clean.operations) + 1):
        shutil.rmtree(home)
        shutil.copytree(kept, home, symlinks=True)
        with pytest.raises(PowerCut):
            open_device(disk=FaultyDisk(tmp_path / f"stash-{cut_at}", cut_at=cut_at)).update()
        active = open_device().active()
        verify_tree(active.tree, active.manifest.files)
        assert active.manifest.version in {1, 3}
        open_device(disk=FaultyDisk(tmp_path / f"stash2-{cut_at}")).update()
        active = open_device().active()
        verify_tree(active.tree, active.manifest.files)
        assert active.manifest.version == 3, f"cut at {cut_at}: {clean.operations[cut_at - 1]}"


@pytest.mark.slow
@pytest.mark.parametrize(("code", "stays_failed"), [(errno.ENOSPC, False), (errno.EROFS, True), (errno.EIO, False)])
def test_a_disk_that_fails_at_any_operation(
    service: FakeUpdateService, v1: Path, tmp_path: Path, open_device: OpenDevice, code: int, *, stays_failed: bool
) -> None:
    home, kept = tmp_path / "home", tmp_path / "kept"
    open_device().update()
    service.publish(write_tree(tmp_path / "v2", base_seed=1, adapter_seed=2), version=2, deltas_from=(1,))
    shutil.copytree(home, kept, symlinks=True)
    clean = FaultyDisk(tmp_path / "stash")
    open_device(disk=clean).update()
    failures = 0
    for fail_at in range(1, len(clean.operations) + 1):
        shutil.rmtree(home)
        shutil.copytree(kept, home, symlinks=True)
        disk = FaultyDisk(tmp_path / f"stash-{fail_at}", fail_at=fail_at, code=code, stays_failed=stays_failed)
        try:
            open_device(disk=disk).update()
        except DeviceDiskError:
            failures += 1
        active = open_device().active()
        verify_tree(active.tree, active.manifest.files)
        open_device(disk=FaultyDisk(tmp_path / f"stash2-{fail_at}")).update()
        active = open_device().active()
        verify_tree(active.tree, active.manifest.files)
        assert active.manifest.version == 2, f"failed at {fail_at}: {clean.operations[fail_at - 1]}"
        assert "reverted" not in {outcome for _, outcome in service.outcomes()}
    assert failures >= len(clean.operations) // 2
