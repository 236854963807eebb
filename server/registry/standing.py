"""What is the same for all devices of a model: read once under a change token, and kept in this process.

A check looks at rollouts, releases, packages and chains that it shares with thousands of others. Whoever asks has read
the change token before, with the device's own rows (`AskingDevice`). What is read after a token was seen is at least as
new as that token, and as long as it is the token, no write has changed any of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from server.registry.records import FollowedRollout, PackageRecord, VersionRecord
    from server.registry.registry import Registry
    from server.rollouts import Release

_Fact = TypeVar("_Fact")
# Devices may name any number as their version; more than this is not worth the memory.
_MOST_KEPT: Final = 10_000


class Standing:
    """Facts about models under one change token, each read when it is asked for the first time.

    Args:
        registry: Who reads.
        token: The change token, which was seen before anything here is read.
    """

    def __init__(self, registry: Registry, token: str) -> None:
        self.token = token
        self._registry = registry
        self._kept: dict[Hashable, object] = {}

    def version(self, model: str, number: int) -> VersionRecord:
        """One version.

        Raises:
            NotFoundError: The model has no such version.
        """
        return self.keep(("version", model, number), lambda: self._registry.version(model, number))

    def packages(self, model: str, number: int) -> tuple[PackageRecord, ...]:
        """The packages of a version."""
        return self.keep(("packages", model, number), lambda: self._registry.packages(model, number))

    def deltas(self, model: str) -> tuple[PackageRecord, ...]:
        """Every delta between released versions of a model."""
        return self.keep(("deltas", model), lambda: self._registry.deltas(model))

    def followed(self, model: str, channels: frozenset[str]) -> tuple[FollowedRollout, ...]:
        """The rollouts that may give something to a device on these channels."""
        return self.keep(("followed", model, channels), lambda: self._registry.followed_rollouts(model, channels))

    def releases(self, model: str, numbers: frozenset[int]) -> Mapping[int, Release]:
        """Those of some versions that are, or were, released."""
        return self.keep(("releases", model, numbers), lambda: self._registry.releases(model, numbers))

    def keep(self, key: Hashable, make: Callable[[], _Fact]) -> _Fact:
        """What was made for ``key`` under this token; made now where nobody asked for it yet."""
        kept = self._kept.get(key)
        if kept is None:
            kept = make()
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[key] = kept
        return cast("_Fact", kept)
