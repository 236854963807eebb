"""Versions from and to folders: import a base, add an adapter, rebuild a version's tree from the artifact store."""

from __future__ import annotations

import secrets
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from delta_updates import DeltaError, FileEntry, VersionManifest, base_hash, scan_tree, tree_hash, verify_tree
from server.errors import ArtifactDamagedError, InvalidRecordError, PublishingError
from server.files import make_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from server.artifacts import ArtifactStore
    from server.registry import Registry, VersionRecord

    Facts = Mapping[str, str | int | float | bool | None]

BASE_FILES: Final = (
    "base/config.json",
    "base/model.safetensors",
    "base/tokenizer.json",
    "base/tokenizer_config.json",
)
ADAPTER_FILES: Final = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")


def import_base(
    registry: Registry,
    artifacts: ArtifactStore,
    *,
    model: str,
    tree: Path,
    facts: Facts | None = None,
    made_from: str | None = None,
) -> VersionRecord:
    """Add a folder with ``base/`` files as a candidate base version; the same base again is the version it was.

    Args:
        registry: Where it is added.
        artifacts: Where its files go first.
        model: The model.
        tree: The folder.
        facts: What people want to see beside it.
        made_from: The hash of the base that it was made from, by merging an adapter into it for one: what was spent on
            that was spent on this one too. None: its weights are from elsewhere.

    Raises:
        InvalidRecordError: No version has the base that it was made from.
        PublishingError: The folder is no base version, or the model's name is not allowed.
        StorageError: The disk refused.
    """
    files = _scan(tree, required=BASE_FILES, inside="base/")
    if made_from is not None:  # first: a base must not be there without its bill
        registry.add_base_origin(base_hash(files), made_from=made_from)
    for known in registry.versions(model):
        if known.manifest.tree_hash == tree_hash(files) and known.state != "rejected":
            return known
    for file in files:
        _put(artifacts, tree / file.path, file)
    return registry.add_candidate(_manifest(model, files, kind="base", parent=None, facts=facts or {}))


def create_candidate(  # noqa: PLR0913 - the facts of a version, each by its name
    registry: Registry,
    artifacts: ArtifactStore,
    *,
    model: str,
    adapter: Path,
    parent: int,
    facts: Facts | None = None,
    run_id: str | None = None,
    master: bytes | None = None,
    above: int = 0,
) -> VersionRecord:
    """Add an adapter folder (its two files) on the parent's base as a candidate version.

    Args:
        registry: Where the parent is.
        artifacts: Where its files and the master go first, so that a row never points at bytes that are not there.
        model: The model.
        adapter: The folder; its bytes are what is hashed, judged and shipped.
        parent: The version that devices come from.
        facts: What people want to see beside it.
        run_id: The run that it comes from.
        master: The unrounded adapter, kept for the next release (`server.federation.adapter`); in no tree and no
            package.
        above: The version gets a number above this one.

    Raises:
        NotFoundError: There is no such parent.
        PublishingError: The folder is no adapter.
        StorageError: The disk refused.
    """
    base = [file for file in registry.version(model, parent).manifest.files if file.path.startswith("base/")]
    found = _scan(adapter, required=tuple(path.removeprefix("adapter/") for path in ADAPTER_FILES), inside="")
    for file in found:
        _put(artifacts, adapter / file.path, file)
    adapter_files = [file.model_copy(update={"path": f"adapter/{file.path}"}) for file in found]
    manifest = _manifest(model, [*base, *adapter_files], kind="adapter", parent=parent, facts=facts or {})
    master_sha256 = None if master is None else artifacts.put_bytes(master)
    return registry.add_candidate(manifest, run_id=run_id, master_sha256=master_sha256, above=above)


def restore(registry: Registry, *, model: str, version: int, above: int = 0) -> VersionRecord:
    """Add the contents of an older release as a new candidate: versions never go down, so going back rolls forward.

    The candidate stands on what the older release stood on, and has passed the gate that it passed. Restoring again
    before it is released is the same candidate.

    Raises:
        NotFoundError: There is no such version.
        PublishingError: It was never released.
    """
    latest = registry.latest_released(model)
    for known in registry.versions(model, after=latest.number if latest else 0):
        # An attempt that was cut off before it was released.
        if known.state == "candidate" and known.manifest.facts.get("restored_from") == version:
            return known
    old = registry.version(model, version)
    if old.state not in {"released", "withdrawn"}:
        raise PublishingError(f"v{version} of {model!r} is {old.state}: only what was released once can be restored.")
    manifest = old.manifest.model_copy(
        update={
            "parent": old.number,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "facts": {**old.manifest.facts, "restored_from": old.number},
        }
    )
    restored = registry.add_candidate(manifest, master_sha256=old.master_sha256, above=above)
    if old.gate is not None:
        registry.record_gate(model, restored.number, old.gate)
    return registry.version(model, restored.number)


def materialise(registry: Registry, artifacts: ArtifactStore, *, model: str, version: int, folder: Path) -> None:
    """Rebuild a version's tree in ``folder`` from the artifact store, by hard link where the disk has them.

    The folder appears complete or not at all. Its files are read-only, because they may be the store's own.

    Raises:
        NotFoundError: There is no such version.
        ArtifactMissingError: The store has lost a file.
        ArtifactDamagedError: The store's file has another size, or ``folder`` is there with other contents.
        StorageError: The disk refused.
    """
    manifest = registry.version(model, version).manifest
    if folder.exists():
        return _require_tree(folder, manifest)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    try:
        for file in manifest.files:
            destination = temporary / file.path
            make_folder(destination.parent)
            artifacts.export(file.sha256, destination, length=file.length)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was quicker; what it made must be the same.
            _require_tree(folder, manifest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _scan(folder: Path, *, required: Sequence[str], inside: str) -> tuple[FileEntry, ...]:
    try:
        files = scan_tree(folder)
    except DeltaError as error:
        raise PublishingError(f"{folder} cannot be used: {error}") from error
    paths = {file.path for file in files}
    missing, foreign = sorted(set(required) - paths), sorted(path for path in paths if not path.startswith(inside))
    if missing or foreign:
        what = f"lacks {', '.join(missing)}" if missing else f"holds {foreign[0]}, which does not belong to a base"
        raise PublishingError(f"{folder} {what}. A version needs {', '.join(required)}.")
    return files


def _put(artifacts: ArtifactStore, path: Path, file: FileEntry) -> None:
    digest = artifacts.put_file(path)
    if digest != file.sha256:
        raise PublishingError(f"{path} changed while it was read. Leave the folder alone and start again.")


def _manifest(
    model: str, files: Sequence[FileEntry], *, kind: str, parent: int | None, facts: Facts
) -> VersionManifest:
    try:
        return VersionManifest.model_validate(
            {
                "model": model,
                # The registry replaces it by the number it gives out.
                "version": (parent or 0) + 1,
                "kind": kind,
                "parent": parent,
                "base_hash": base_hash(files),
                "tree_hash": tree_hash(files),
                "files": tuple(sorted(files, key=lambda file: file.path)),
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "facts": dict(facts),
            }
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise InvalidRecordError(f"This is no version: {fault['loc']}: {fault['msg']}.") from None


def _require_tree(folder: Path, manifest: VersionManifest) -> None:
    try:
        verify_tree(folder, manifest.files)
    except DeltaError as error:
        raise ArtifactDamagedError(f"{folder} is not v{manifest.version}: {error}. Remove it and try again.") from error
