"""A power cut before any change that publishing makes; counted on a clean run, then made at each of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from server.artifacts import LocalArtifactStore
from server.files import write_durably
from server.registry import GateResult, PackageRecord, Registry, StatementRecord, VersionRecord
from server.rollouts import AT_ONCE, Launch

_Result = TypeVar("_Result")


class PowerCutError(BaseException):
    """The machine is off; no handler of ordinary errors may see this."""


def raise_power_cut() -> None:
    raise PowerCutError


class Fuse:
    """Lets ``cut_at - 1`` operations pass and blows at the next; None never blows, only counts."""

    def __init__(self, cut_at: int | None = None, *, blow: Callable[[], None] = raise_power_cut) -> None:
        self.operations: list[str] = []
        self._cut_at = cut_at
        self._blow = blow

    def burn(self, operation: str) -> None:
        self.operations.append(operation)
        if len(self.operations) == self._cut_at:
            self._blow()

    def around(self, operation: str, act: Callable[[], _Result]) -> _Result:
        # A cut after one operation is a cut before the next: nothing changes in between.
        self.burn(operation)
        return act()

    def write(self, path: Path, content: bytes) -> None:
        self.around(f"write {path.name}", lambda: write_durably(path, content))


class FusedStore(LocalArtifactStore):
    """An artifact store behind a fuse."""

    def __init__(self, folder: Path, fuse: Fuse) -> None:
        super().__init__(folder)
        self._fuse = fuse

    def put_file(self, source: Path) -> str:
        return self._fuse.around("put_file", lambda: super(FusedStore, self).put_file(source))

    def put_bytes(self, content: bytes) -> str:
        return self._fuse.around("put_bytes", lambda: super(FusedStore, self).put_bytes(content))


class FusedRegistry(Registry):
    """A registry behind a fuse; a transaction is one operation."""

    fuse: Fuse

    def record_gate(self, model: str, number: int, gate: GateResult) -> None:
        self.fuse.around("record_gate", lambda: super(FusedRegistry, self).record_gate(model, number, gate))

    def record_statement(self, statement: StatementRecord) -> None:
        self.fuse.around("record_statement", lambda: super(FusedRegistry, self).record_statement(statement))

    def add_packages(self, model: str, number: int, packages: Sequence[PackageRecord]) -> None:
        self.fuse.around("add_packages", lambda: super(FusedRegistry, self).add_packages(model, number, packages))

    def mark_released(self, model: str, number: int, *, launch: Launch = AT_ONCE) -> VersionRecord:
        return self.fuse.around(
            "mark_released", lambda: super(FusedRegistry, self).mark_released(model, number, launch=launch)
        )
