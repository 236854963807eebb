"""The doctor: what a crash, a disk or a restored backup left wrong between registry, artifacts and signed metadata."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from server.artifacts import is_whole
from server.errors import ArtifactMissingError, ServerError
from server.publishing import manifest_target, package_target, statement_target
from server.upkeep.workshop import remove_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from server.registry import PackageRecord, VersionRecord
    from server.registry.upkeep import NamedArtifact
    from server.upkeep.workshop import Workshop

    Remedy = Callable[[], bool]

_BACKUP: Final = "Restore it from a backup (docs/backup.md)."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: One of a fixed few words, for programs.
        subject: What it is about.
        problem: What is wrong with it and what to do, in words.
        remedy: Does what the doctor can do about it, and says whether that helped; None where a person must.
    """

    kind: str
    subject: str
    problem: str
    remedy: Remedy | None = None


def examine(shop: Workshop, *, read_all: bool = True) -> tuple[Finding, ...]:
    """Look at everything and change nothing.

    Args:
        shop: The home.
        read_all: Also read every named artifact and compare its hash; without, only its length.

    Raises:
        ServerError: Database, store or metadata do not answer, so nothing can be said.
    """
    return (
        *_artifacts(shop, read_all=read_all),
        *_unnamed(shop),
        *_signatures(shop),
        *_foreign(shop),
        *_leftovers(shop),
    )


def mend(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Do what can be done; returns what is still wrong."""
    return tuple(finding for finding in findings if not _is_mended(finding))


def _is_mended(finding: Finding) -> bool:
    try:
        return finding.remedy is not None and finding.remedy()
    except ServerError:
        return False


def _artifacts(shop: Workshop, *, read_all: bool) -> Iterator[Finding]:
    """Named artifacts that are not there, or are not what their name says."""
    remedies = _remedies(shop)
    by_digest: dict[str, list[NamedArtifact]] = {}
    for named in shop.registry.named_artifacts():
        if named.is_needed:
            by_digest.setdefault(named.digest, []).append(named)
    for digest, names in sorted(by_digest.items()):
        lengths = {named.length for named in names if named.length is not None}
        who = ", ".join(sorted({named.named_by for named in names}))
        remedy = next((remedies[named.named_by] for named in names if named.named_by in remedies), None)
        advice = "It can be made again." if remedy else _BACKUP
        try:
            is_good = lengths <= {shop.artifacts.length(digest)} and (not read_all or is_whole(shop.artifacts, digest))
        except ArtifactMissingError:
            yield Finding(
                kind="missing-artifact",
                subject=digest,
                problem=f"{who}: the artifact store has lost it. {advice}",
                remedy=remedy,
            )
            continue
        if not is_good:
            yield Finding(
                kind="damaged-artifact",
                subject=digest,
                problem=f"{who}: the artifact store holds other bytes. {advice}",
                remedy=remedy,
            )


def _remedies(shop: Workshop) -> dict[str, Remedy]:
    """How to make artifacts again, by who names them: manifests from the registry, packages from their versions."""
    remedies: dict[str, Remedy] = {}
    for version in _versions(shop):
        if version.state == "released":
            remedies[version.manifest_path] = partial(_restore_manifest, shop, version)
        for package in shop.registry.packages(version.model, version.number):
            remedies[package.path] = partial(shop.rebuild, package)
    return remedies


def _restore_manifest(shop: Workshop, version: VersionRecord) -> bool:
    return shop.artifacts.has(shop.artifacts.put_bytes(version.manifest.to_bytes()))


def _unnamed(shop: Workshop) -> Iterator[Finding]:
    before = shop.long_ago()
    for digest in shop.unnamed():
        yield Finding(
            kind="unnamed-artifact",
            subject=digest,
            problem="Nothing refers to it: it was put by work that was cut off. It can be removed.",
            remedy=partial(shop.artifacts.remove, digest, stored_before=before),
        )


def _signatures(shop: Workshop) -> Iterator[Finding]:
    """Versions that the registry calls released and devices would refuse, and the other way round."""
    signed = shop.metadata.signed_files()
    for model in shop.registry.models():
        versions = shop.registry.versions(model)
        released = [version for version in versions if version.state == "released"]
        # Older ones are retired on purpose.
        current = {version.number for version in released[-shop.settings.signed_versions :]}
        for version in versions:
            packages = shop.registry.packages(model, version.number)
            if version.state == "released" and version.number in current:
                yield from _unsigned(shop, version, packages, signed)
            elif version.state == "candidate" and version.manifest_path in signed:
                yield Finding(
                    kind="unreleased-version",
                    subject=version.manifest_path,
                    problem=f"v{version.number} of {model!r} is built, proven and signed, but publishing was cut off "
                    "before it was released. It can be released.",
                    remedy=partial(_release, shop, version),
                )


def _release(shop: Workshop, version: VersionRecord) -> bool:
    return shop.registry.mark_released(version.model, version.number).state == "released"


def _unsigned(
    shop: Workshop,
    version: VersionRecord,
    packages: tuple[PackageRecord, ...],
    signed: dict[str, tuple[int, str]],
) -> Iterator[Finding]:
    statement = shop.registry.statement(version.model, version.number)
    stated = [statement.target.path] if statement else []
    for path in (version.manifest_path, *stated, *(package.path for package in packages)):
        if path not in signed:
            # A manifest needs the releases key, which only who releases has.
            yield Finding(
                kind="unsigned-file",
                subject=path,
                problem="It is released, but not signed: devices refuse it. It can be signed again.",
                remedy=partial(_sign, shop, version, packages),
            )


def _sign(shop: Workshop, version: VersionRecord, packages: tuple[PackageRecord, ...]) -> bool:
    manifest = version.manifest.to_bytes()
    digest = shop.artifacts.put_bytes(manifest)
    statement = shop.registry.statement(version.model, version.number)
    shop.metadata.add_release(
        manifest=manifest_target(version, length=len(manifest), sha256=digest),
        packages=[package_target(package, version) for package in packages],
        statement=statement_target(statement, version) if statement else None,
    )
    return True


def _foreign(shop: Workshop) -> Iterator[Finding]:
    """What is signed and the registry does not know, or knows otherwise."""
    known: dict[str, tuple[int, str]] = {}
    for version in _versions(shop):
        manifest = version.manifest.to_bytes()
        known[version.manifest_path] = (len(manifest), hashlib.sha256(manifest).hexdigest())
        packages = shop.registry.packages(version.model, version.number)
        known |= {package.path: (package.length, package.sha256) for package in packages}
        if statement := shop.registry.statement(version.model, version.number):
            known[statement.target.path] = (statement.length, statement.sha256)
    collected = shop.registry.collected_paths()
    for path, file in sorted(shop.metadata.signed_files().items()):
        if path in collected:
            yield Finding(
                kind="signed-leftover",
                subject=path,
                problem="It was collected, and is still signed. Its signature can be dropped.",
                remedy=partial(_drop, shop, path),
            )
        elif path not in known:
            yield Finding(
                kind="unknown-signed-file",
                subject=path,
                problem="It is signed, and the registry does not know it: database and metadata are of other times, "
                "or somebody else has used a key. Restore both from one backup; `lamella trust show` names the keys.",
            )
        elif known[path] != file:
            yield Finding(
                kind="signed-otherwise",
                subject=path,
                problem=f"Signed is sha256 {file[1]} ({file[0]} bytes), the registry has {known[path][1]} "
                f"({known[path][0]} bytes). Restore database and metadata from one backup.",
            )


def _drop(shop: Workshop, path: str) -> bool:
    shop.metadata.drop_packages([path])
    return True


def _leftovers(shop: Workshop) -> Iterator[Finding]:
    before = shop.long_ago()
    for name in shop.artifacts.abandoned(before=before):
        yield Finding(
            kind="leftover",
            subject=name,
            problem="A write into the artifact store was cut off. It can be removed.",
            remedy=partial(_remove_abandoned, shop),
        )
    for folder in shop.work_folders():
        yield Finding(
            kind="leftover",
            subject=str(folder),
            problem="Work was cut off here. The folder can be removed.",
            remedy=partial(_remove_folder, folder),
        )


def _remove_abandoned(shop: Workshop) -> bool:
    shop.artifacts.remove_abandoned(before=shop.long_ago())
    return True


def _remove_folder(folder: Path) -> bool:
    remove_folder(folder)
    return not folder.exists()


def _versions(shop: Workshop) -> Iterator[VersionRecord]:
    for model in shop.registry.models():
        yield from shop.registry.versions(model)
