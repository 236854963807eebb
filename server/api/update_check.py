"""One device's question, answered: what it told is kept, and what it gets is offered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from delta_updates import ChainStep, Offer, PackageRef
from delta_updates.offer import last_format
from server.errors import ConflictError
from server.room import Room
from server.ways import find_way

if TYPE_CHECKING:
    from delta_updates import UpdateQuery
    from server.api.services import Services
    from server.registry import AskingDevice, PackageRecord, VersionRecord
    from server.ways import Way


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a device is offered, None for nothing; and whether time alone may change that."""

    offer: Offer | None
    is_time_bound: bool


@dataclass(frozen=True, kw_only=True)
class UpdateCheck:
    """A question of a device that proved who it is."""

    services: Services
    asking: AskingDevice
    query: UpdateQuery
    free_bytes: int | None
    protocol: int

    def answer(self) -> Answer:
        """Note what the device runs, and find what it gets.

        Raises:
            ConflictError: No package fits on its disk, or it reads none of them.
            NeedsDatabaseError: Inside `from_memory`, where something has to be read or written for it.
        """
        self._note()
        found = find_way(
            self.services.registry,
            self.services.metadata,
            self.asking,
            self.query,
            Room(free_bytes=self.free_bytes),
            last_format=last_format(self.protocol),
        )
        offer = None if found.way is None else self._offer(found.way)
        return Answer(offer=offer, is_time_bound=found.is_time_bound)

    def _note(self) -> None:
        device, query = self.asking.device, self.query
        if not device.is_news(query.installed_version, query.installed_hash, self.free_bytes):
            self.services.seen.note(device.device_id)
            return
        self.services.registry.record_check(
            device.device_id,
            installed_version=query.installed_version,
            installed_hash=query.installed_hash,
            free_bytes=self.free_bytes,
        )

    def _offer(self, way: Way) -> Offer | None:
        """The offer of a way, the open one or a new one; None when its rollout was stopped just now."""
        version, offered = way.version, way.open_offer
        if offered is None:
            try:
                offered = self.services.registry.record_offer(
                    self.asking.device.device_id,
                    model=version.model,
                    version=version.number,
                    package_path=way.package.path,
                    rollout_id=way.rollout_id,
                )
            except ConflictError:
                return None
        return Offer(
            offer_id=offered.offer_id,
            model=version.model,
            version=version.number,
            tree_hash=version.manifest.tree_hash,
            manifest_path=version.manifest_path,
            package=_ref(way.package),
            chain=tuple(_step(package, made) for package, made in way.chain),
        )


def _step(package: PackageRecord, made: VersionRecord) -> ChainStep:
    return ChainStep(
        version=made.number,
        tree_hash=made.manifest.tree_hash,
        manifest_path=made.manifest_path,
        package=_ref(package),
    )


def _ref(package: PackageRecord) -> PackageRef:
    return PackageRef(
        path=package.path, length=package.length, sha256=package.sha256, source_version=package.source_version
    )
