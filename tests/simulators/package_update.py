"""Two versions on disk, the package between them, and a place for the second one."""

from pathlib import Path
from typing import Any

from simulators.faulty_disk import FaultyDisk
from simulators.version_trees import source_and_target, write_tree

from delta_updates import ApplyResult, apply_package, build_package, scan_tree, verify_tree


class PackageUpdate:
    """A source, a target, and the package between them."""

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        old, new = source_and_target(seed)
        self.folder = folder
        self.source = write_tree(folder / "v1", old)
        self.target = write_tree(folder / "v2", new)
        self.package = folder / "v2.lmpkg"
        self.built = build_package(self.source, self.target, self.package)
        self.slot = folder / "slots" / "b"
        self.slot.parent.mkdir()
        self._stashes = 0

    def apply(self, **options: Any) -> ApplyResult:
        """Apply into the slot."""
        options = {"expected_target_hash": self.built.target_hash, **options}
        source = options.pop("source", self.source)
        return apply_package(source, options.pop("package", self.package), self.slot, **options)

    def disk(self, **faults: Any) -> FaultyDisk:
        """A disk with these faults; without any it spares the time of real syncs."""
        self._stashes += 1
        return FaultyDisk(self.folder / "stash" / str(self._stashes), **faults)

    def require_complete(self) -> None:
        """The slot holds the target, and nothing lies beside it."""
        verify_tree(self.slot, scan_tree(self.target))
        assert [path.name for path in self.slot.parent.iterdir()] == [self.slot.name]

    def require_nothing_left(self) -> None:
        assert list(self.slot.parent.iterdir()) == []
