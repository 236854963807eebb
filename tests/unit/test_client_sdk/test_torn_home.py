"""A power cut may leave any file of a device's home empty, halved or full of zeros, whoever wrote it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from simulators.update_service import FakeUpdateService
from simulators.versions import write_tree

from client_sdk import Device
from client_sdk.errors import DeviceError

# What a device is, and cannot find out again: these are told, with what to do.
TOLD = {"state.json", "credential", "pinned_root"}
TEARS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda raw: raw[: len(raw) // 2],
    "zeros": lambda raw: bytes(len(raw)),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_file_is_mended_or_told(
    tear: str, service: FakeUpdateService, v1: object, tmp_path: Path, open_device: Callable[[], Device]
) -> None:
    assert v1
    home, kept = tmp_path / "home", tmp_path / "kept"
    open_device().update()
    service.publish(write_tree(tmp_path / "v2", base_seed=1, adapter_seed=2), version=2, deltas_from=(1,))
    open_device().check()
    shutil.copytree(home, kept, symlinks=True)
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file() and not path.is_symlink())
    assert len(files) > len(TOLD)
    told = set()
    for file in files:
        shutil.rmtree(home)
        shutil.copytree(kept, home, symlinks=True)
        path = home / file
        torn = TEARS[tear](path.read_bytes())
        path.chmod(0o600)
        path.write_bytes(torn)
        try:
            assert open_device().update().to_version == 2, file
        except DeviceError:
            told.add(file.name)
    assert told <= TOLD
