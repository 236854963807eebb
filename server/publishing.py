"""Publishing: candidate → evaluation and privacy gates → packages, applied and compared → signed → released.

Order is what makes a crash harmless: artifacts first, then one registry transaction, then signed targets, and only
then is the version released and offered. Publishing again after a crash does what is left to do.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from delta_updates import DeltaError, apply_package, build_package
from delta_updates.workers import usable_cores
from server.errors import ArtifactDamagedError, PublishingError
from server.files import locked, make_folder
from server.gate import Gate, pass_gate, require_audit, require_gate, require_releasable
from server.registry.gate_result import GateResult
from server.registry.records import PackageRecord
from server.rollouts import AT_ONCE
from server.signing import NewTarget
from server.statements import DEFAULT_MAX_EPSILON, StatementGate
from server.trees import create_candidate, import_base, materialise, restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from server.artifacts import ArtifactStore
    from server.registry import Registry, StatementRecord, VersionRecord
    from server.rollouts import Launch
    from server.signing import SignedMetadata

    OnStep = Callable[[str, int, int], None]

__all__ = [
    "Gate",
    "GateResult",
    "PublishResult",
    "create_candidate",
    "evaluate",
    "import_base",
    "manifest_target",
    "materialise",
    "package_target",
    "publish",
    "require_audit",
    "require_gate",
    "require_releasable",
    "restore",
    "statement_target",
]

# Measured: above this share of the full package, a delta saves too little for what applying it costs a device.
DELTA_WORTH_BELOW: Final = 0.7


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """A released version and its packages, the full one first."""

    version: VersionRecord
    packages: tuple[PackageRecord, ...]


def evaluate(
    registry: Registry,
    artifacts: ArtifactStore,
    *,
    model: str,
    version: int,
    gate: Gate,
    loss_of: Callable[[Path], float],
    work: Path,
) -> GateResult:
    """Measure a candidate and its parent with ``loss_of(tree) -> held-out loss`` and hold them to the gate.

    Raises:
        PublishingError: The version has no parent to compare with.
        NotFoundError, StorageError: As for `materialise`.
    """
    parent = registry.version(model, version).manifest.parent
    if parent is None:
        raise PublishingError(f"v{version} of {model!r} has no parent: there is nothing to compare it with.")
    with _workspace(work) as folder:
        losses = []
        for number in (version, parent):
            tree = folder / f"v{number}"
            materialise(registry, artifacts, model=model, version=number, folder=tree)
            losses.append(loss_of(tree))
    return gate.judge(candidate_loss=losses[0], parent_loss=losses[1])


def publish(  # noqa: PLR0913 - what it works on, then what to do, each by its name
    registry: Registry,
    artifacts: ArtifactStore,
    metadata: SignedMetadata,
    *,
    model: str,
    version: int,
    gate: GateResult | None,
    work: Path,
    on_step: OnStep | None = None,
    launch: Launch = AT_ONCE,
    max_epsilon: float = DEFAULT_MAX_EPSILON,
    is_audit_required: bool = False,
) -> PublishResult:
    """Release a candidate; publishing a half-published one finishes it, a released one changes nothing.

    Args:
        registry: Where the version is a candidate.
        artifacts: Where its files are.
        metadata: What signs it, opened with the folder of the releases key.
        model: The model.
        version: Its candidate.
        gate: What `evaluate` answered; None for a base, or when an earlier, cut-off attempt has passed the gate.
        work: Folder for building and checking, on the artifact store's disk.
        on_step: Called before each step with what is done, how many steps are done, and how many there are.
        launch: Who gets it first; all devices of the stable channel at once unless it says otherwise.
        max_epsilon: What the ε of its signed privacy statement may not exceed, in any unit.
        is_audit_required: Release no run that was never audited. One whose audit failed is never released.

    Raises:
        GateRefusedError: A gate failed; the candidate is rejected and the registry keeps the reason.
        ConflictError: The version is rejected, or older than the latest release.
        PublishingError: A package does not rebuild the version, or its privacy statement does not hold.
        ConfigurationError, SigningError: The releases key is not there or does not open; nothing was built.
        StorageError: The disk refused, or an artifact is damaged.
    """
    with _workspace(work) as folder:
        record = registry.version(model, version)
        if record.state != "released":
            record = pass_gate(registry, record, gate)  # with its gate, which report and statement tell
            require_releasable(registry, record, is_audit_required=is_audit_required)
            metadata.unlock_releases()
            statement = StatementGate(registry, artifacts, metadata, max_epsilon).pass_(record)
            told = on_step or _no_progress
            _Publication(registry, artifacts, metadata, record, statement, folder, told, launch).run()
        return PublishResult(version=registry.version(model, version), packages=registry.packages(model, version))


@dataclass(frozen=True)
class _Publication:
    """One attempt to release one version, in a folder of its own."""

    registry: Registry
    artifacts: ArtifactStore
    metadata: SignedMetadata
    record: VersionRecord
    statement: StatementRecord
    folder: Path
    on_step: OnStep
    launch: Launch

    def run(self) -> None:
        model, number = self.record.model, self.record.number
        recorded = self.registry.packages(model, number)
        field = [source for source in self.registry.versions_in_the_field(model) if source < number]
        known = {package.source_version for package in recorded}
        missing = [source for source in (None, *field) if source not in known]
        steps = len(missing) + 2
        built: list[PackageRecord] = list(recorded)
        for done, source in enumerate(missing):
            self.on_step(f"build and check {_package_name(source)}", done, steps)
            package = self._package(source)
            if source is None or package.length <= DELTA_WORTH_BELOW * _full_length(built):
                built.append(package)
        self.registry.add_packages(model, number, built)
        self.on_step("sign", steps - 2, steps)
        manifest = self.record.manifest.to_bytes()
        manifest_digest = self.artifacts.put_bytes(manifest)
        self.metadata.add_release(
            manifest=manifest_target(self.record, length=len(manifest), sha256=manifest_digest),
            packages=[package_target(package, self.record) for package in built],
            statement=statement_target(self.statement, self.record),
            offered=self.registry.versions_offered(model),
        )
        self.on_step("release", steps - 1, steps)
        self.registry.mark_released(model, number, launch=self.launch)
        self.on_step("released", steps, steps)

    def _package(self, source: int | None) -> PackageRecord:
        """Build one package, prove that it rebuilds the version, and store it."""
        model, number = self.record.model, self.record.number
        source_tree = None if source is None else self._tree(source)
        target_tree, out, rebuilt = self._tree(number), self.folder / "package", self.folder / "rebuilt"
        try:
            result = build_package(source_tree, target_tree, out, workers=usable_cores())
            # A damaged store builds a package that fits its own damage, and no device.
            self._require_hash(number, result.target_hash)
            if source is not None:
                self._require_hash(source, result.source_hash)
            applied = apply_package(
                source_tree,
                out,
                rebuilt,
                expected_target_hash=self.record.manifest.tree_hash,
                workers=usable_cores(),
            )
        except DeltaError as error:
            raise PublishingError(
                f"{_package_name(source)} does not rebuild v{number} of {model!r}: {error}"
            ) from error
        digest, length = self.artifacts.put_file(out), out.stat().st_size
        out.unlink()
        shutil.rmtree(rebuilt)
        return PackageRecord(
            model=model,
            version=number,
            source_version=source,
            path=f"packages/{model}/{number}/{'full' if source is None else f'from-{source}'}.lmpkg",
            length=length,
            sha256=digest,
            format=result.format,
            facts={
                "target_bytes": result.target_bytes,
                "ratio": result.ratio,
                "build_seconds": result.seconds,
                "apply_seconds": applied.seconds,
                "codecs": result.codecs,
            },
        )

    def _tree(self, number: int) -> Path:
        folder = self.folder / f"v{number}"
        if not folder.exists():
            materialise(self.registry, self.artifacts, model=self.record.model, version=number, folder=folder)
        return folder

    def _require_hash(self, number: int, found: str | None) -> None:
        expected = self.registry.version(self.record.model, number).manifest.tree_hash
        if found != expected:
            raise ArtifactDamagedError(
                f"The artifact store no longer holds v{number} of {self.record.model!r}: its tree has hash {found}, "
                f"recorded is {expected}. Restore the store from a backup."
            )


@contextmanager
def _workspace(work: Path) -> Iterator[Path]:
    """An empty folder for one publisher at a time; what a crash left behind is removed first."""
    make_folder(work)
    with locked(work / ".lock"):
        for stale in work.glob("attempt-*"):
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=work, prefix="attempt-") as folder:
            yield Path(folder)


def _full_length(packages: Sequence[PackageRecord]) -> int:
    return next(package.length for package in packages if package.source_version is None)


def _package_name(source: int | None) -> str:
    return "the full package" if source is None else f"the delta from v{source}"


def package_target(package: PackageRecord, record: VersionRecord) -> NewTarget:
    """What is signed about a package."""
    return NewTarget(
        path=package.path,
        length=package.length,
        sha256=package.sha256,
        custom={
            "model": record.model,
            "version": record.number,
            "tree_hash": record.manifest.tree_hash,
            "source_version": package.source_version,
        },
    )


def manifest_target(record: VersionRecord, *, length: int, sha256: str) -> NewTarget:
    """What is signed about a version's manifest."""
    return NewTarget(
        path=record.manifest_path,
        length=length,
        sha256=sha256,
        custom={"model": record.model, "version": record.number, "tree_hash": record.manifest.tree_hash},
    )


def statement_target(statement: StatementRecord, record: VersionRecord) -> NewTarget:
    """What is signed about a version's privacy statement, with the key that its envelope is signed by."""
    return NewTarget(
        path=statement.target.path,
        length=statement.length,
        sha256=statement.sha256,
        custom={
            "model": record.model,
            "version": record.number,
            "tree_hash": record.manifest.tree_hash,
            "keyid": statement.keyid,
            "public_key": statement.public_key,
        },
    )


def _no_progress(_text: str, _done: int, _total: int) -> None:
    return None
