"""A device on v1, a service with v2, and what must hold of the device whatever a liar between them has tried."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from simulators.fake_trust import FakeTrust
from simulators.update_service import FakeUpdateService, PackageRef
from simulators.versions import manifest_of, write_tree

from client_sdk import Device, DeviceError
from delta_updates import build_package, verify_tree

V1, V2 = 1, 2


@dataclass
class Victim:
    """Opens the device as a new process would, and compares what an attack has left."""

    service: FakeUpdateService
    open_device: Callable[..., Device]
    folder: Path

    def prepare(self) -> None:
        """Install v1, and publish v2 with a delta from it."""
        self.service.publish(write_tree(self.folder / "v1"), version=V1)
        assert self.open_device().update().to_version == V1
        self.before_v2 = dict(self.service.metadata)
        self.service.publish(write_tree(self.folder / "v2", base_seed=1, adapter_seed=2), version=V2, deltas_from=(V1,))
        self._strangers = self._around()

    def refuses(self, error: type[DeviceError], match: str, **how: object) -> None:
        """An update must fail in these words, and leave the old version whole and serving."""
        with pytest.raises(error, match=match):
            self.open_device(**how).update()
        self.require_unharmed()

    def require_unharmed(self, version: int = V1) -> None:
        """`version` serves, byte for byte; nothing is in test, half-written or written elsewhere."""
        device = self.open_device()
        active, status = device.active(), device.status()
        verify_tree(active.tree, active.manifest.files)
        assert (active.manifest.version, status.version, status.in_test) == (version, version, None)
        assert active.manifest.tree_hash == self.service.published[version].tree_hash
        assert status.highest_version == version
        assert self._around() == self._strangers
        assert not list((self.folder / "home" / "downloads").glob("*[0-9a-f]"))

    def recovers(self, version: int = V2) -> None:
        """With an honest service again the device goes on: the attack has poisoned nothing."""
        self.service.lies.clear()
        self.service.answers.clear()
        self.service.on_offer = lambda offer: offer
        self.service.metadata = self.service.trust.metadata
        result = self.open_device().update()
        assert (result.decision, result.to_version) == ("confirmed", version)
        self.require_unharmed(version)

    def forged_version(self, thief: FakeTrust, *, version: int, seed: int = 66) -> None:
        """Offer a version of the thief's making; its manifest and package are named where their roles are asked."""
        tree = self.folder / f"evil-{version}"
        if not tree.exists():
            write_tree(tree, base_seed=seed)
        manifest = manifest_of(tree, version=version)
        path = f"packages/tiny/{version}/full.lmpkg"
        build_package(None, tree, self.folder / "evil.lmpkg")
        raw = (self.folder / "evil.lmpkg").read_bytes()
        for name, content in ((f"manifests/tiny/{version}.json", manifest.to_bytes()), (path, raw)):
            self.service.files[name] = content
            thief.add_target(name, content, {})
        digest = thief.list_for(path).targets[path].hashes["sha256"]
        offered = self.service.offer(V2).model_copy(
            update={
                "version": version,
                "tree_hash": manifest.tree_hash,
                "manifest_path": f"manifests/tiny/{version}.json",
                "package": PackageRef(path=path, length=len(raw), sha256=digest),
            }
        )
        self.service.on_offer = lambda _offer: offered

    def _around(self) -> set[Path]:
        """Everything outside of the device's folder and the service's."""
        inside = (self.folder / "home", self.folder / "service", self.folder / "stash")
        return {
            path
            for path in self.folder.rglob("*")
            if not path.is_relative_to(inside[0])
            and not path.is_relative_to(inside[1])
            and not path.is_relative_to(inside[2])
            and not path.name.startswith(("v1", "v2", "evil", "enrolment"))
            and not any(part.startswith("evil") for part in path.parts)
        }
