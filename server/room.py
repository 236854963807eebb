"""What a package needs on a device's disk, from what the registry knows of it; the device itself checks again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from delta_updates import VersionManifest
    from server.registry import PackageRecord


@dataclass(frozen=True, kw_only=True)
class Room:
    """The disk bytes that a device has for an update; None when it did not say."""

    free_bytes: int | None = None

    def missing(self, packages: Sequence[PackageRecord], trees: Sequence[VersionManifest | None]) -> int:
        """How many bytes too few there are for these packages, 0 when they fit.

        Args:
            packages: All of them lie on the disk until the last is applied.
            trees: What the device has (None: nothing), and then what each package makes.
        """
        return 0 if self.free_bytes is None else max(0, disk_bytes(packages, trees) - self.free_bytes)


def disk_bytes(packages: Sequence[PackageRecord], trees: Sequence[VersionManifest | None]) -> int:
    """The bytes that a device needs beside what it has: the packages, and in each tree the files that are new there."""
    return sum(package.length for package in packages) + sum(
        _written(tree, source) for source, tree in pairwise(trees) if tree is not None
    )


def _written(tree: VersionManifest, source: VersionManifest | None) -> int:
    # A device links the files that stay as they are.
    have = {(file.path, file.sha256) for file in source.files} if source is not None else set()
    return sum(file.length for file in tree.files if (file.path, file.sha256) not in have)
