"""A/B slots: two folders for versions and one small file that says which of them serves.

`slots/active.json` is the pointer. A version moves through it in two durable steps: *test* (it is there, but the old
slot serves) and *confirmed* (it serves). A power cut at any moment leaves the old pointer or the new one; the folders
of a slot are only ever filled or cleared while the pointer does not name them.
"""

import errno
import logging
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from client_sdk.disk import Disk, disk_errors, make_private_folder, replace_file
from client_sdk.errors import DeviceDiskError
from delta_updates import DeltaError, VersionManifest
from delta_updates.manifest import FileEntry, sha256_of
from delta_updates.unfinished import work_folder

SlotName = Literal["a", "b"]
MAX_BOOTS = 3
"""Self-tests of a version that may be cut off, by a crash or a power cut, before it counts as one that crashes."""

TREE = "tree"
"""Name of the version's folder in its slot."""

_MAX_POINTER_BYTES = 1 << 16
_logger = logging.getLogger(__name__)


class SlotRecord(BaseModel):
    """One slot's content as the pointer names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slot: SlotName
    model: str
    version: int
    tree_hash: str
    base_hash: str
    offer_id: str


class SlotInTest(BaseModel):
    """A slot between *test* and *confirm*; `boots` counts the self-tests that were started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    record: SlotRecord
    boots: int = 0


class Pointer(BaseModel):
    """The content of `slots/active.json`.

    `previous` is the version that served before, as long as its slot holds it: the way back from one that crashes.
    `highest_version` and `highest_hash` repeat the counter of `state.json`, so that losing one file does not lose it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    generation: int = 0
    confirmed: SlotRecord | None = None
    test: SlotInTest | None = None
    previous: SlotRecord | None = None
    highest_version: int = 0
    highest_hash: str | None = None


class ActiveVersion(NamedTuple):
    """A version on this device's disk: its files and its manifest."""

    tree: Path
    manifest: VersionManifest


class SlotStore:
    """The two slots and their pointer under `folder`."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk
        self._pointer_path = folder / "active.json"

    def pointer(self) -> Pointer:
        """Read the pointer; an absent or damaged one reads as "nothing installed", never as a guess.

        Raises:
            DeviceDiskError: the disk cannot be read.
        """
        try:
            with self._pointer_path.open("rb") as file:
                raw = file.read(_MAX_POINTER_BYTES)
        except FileNotFoundError:
            return Pointer()
        except OSError as error:
            raise DeviceDiskError(f"{self._pointer_path} cannot be read: {error.strerror}. Check the disk.") from error
        try:
            return Pointer.model_validate_json(raw)
        except ValidationError:
            _logger.warning("%s is damaged: treating this device as empty", self._pointer_path)
            return Pointer()

    def tree_of(self, record: SlotRecord) -> Path:
        """The folder with the files of a slot's version."""
        return self._folder / record.slot / TREE

    def read(self, record: SlotRecord) -> ActiveVersion | None:
        """A slot's version, or None when its files are not those the pointer names (lost or cut short).

        Compares the manifest's hash and every file's path and length; the content is hashed when it is used as the
        source of a delta.
        """
        tree = self.tree_of(record)
        try:
            manifest = VersionManifest.from_bytes((self._folder / record.slot / "manifest.json").read_bytes())
            is_whole = manifest.tree_hash == record.tree_hash and all(
                (tree / entry.path).stat().st_size == entry.length for entry in manifest.files
            )
        except (OSError, DeltaError):
            return None
        return ActiveVersion(tree, manifest) if is_whole else None

    def active(self) -> ActiveVersion | None:
        """The version that serves, or None when nothing (whole) is installed."""
        confirmed = self.pointer().confirmed
        return self.read(confirmed) if confirmed else None

    def free_slot(self) -> tuple[SlotName, Path]:
        """The slot that does not serve, and its folder, whose contents give way to the next version."""
        pointer = self.pointer()
        free: SlotName = "b" if pointer.confirmed and pointer.confirmed.slot == "a" else "a"
        return free, self._folder / free

    def prepare(self, *names: str) -> tuple[SlotName, Path]:
        """Clear the slot that does not serve; returns its name and the folder where trees go (not yet there).

        What an apply that was cut off left for trees of these names stays, so that it can go on.

        Raises:
            DeviceDiskError: the disk is failing.
        """
        pointer = self.pointer()
        free, folder = self.free_slot()
        if pointer.test and pointer.test.record.slot == free:
            raise ValueError(f"slot {free} is in test: confirm or revert it before preparing another version")
        if pointer.previous:
            # Named no longer before it is cleared: a pointer never names what is not whole.
            self._save(pointer.model_copy(update={"previous": None}))
        kept = {work_folder(folder / name) for name in names}
        with disk_errors(self._folder, "clearing the free slot"):
            make_private_folder(self._folder)
            # A link there would lead the clearing, and then the writing, to somewhere else.
            if folder.is_dir() and not folder.is_symlink():
                for path in folder.iterdir():
                    if path not in kept:
                        self._disk.remove(path)
            else:
                self._disk.remove(folder)
                self._disk.make_folder(folder)
            self._disk.sync_folder(self._folder)
        return free, folder

    def begin_test(self, slot: SlotName, manifest: VersionManifest, offer_id: str) -> SlotInTest:
        """Name a filled slot as *test*. The old slot keeps serving.

        Raises:
            DeviceDiskError: the disk is full, read-only or failing.
        """
        record = SlotRecord(
            slot=slot,
            model=manifest.model,
            version=manifest.version,
            tree_hash=manifest.tree_hash,
            base_hash=manifest.base_hash,
            offer_id=offer_id,
        )
        with disk_errors(self._folder, "storing the new version's manifest"):
            replace_file(self._disk, self._folder / slot / "manifest.json", manifest.to_bytes())
        in_test = SlotInTest(record=record)
        self._save(self.pointer().model_copy(update={"test": in_test}))
        return in_test

    def count_boot(self, by: int = 1) -> int:
        """Count one more start of the self-test, durably and before it runs, so that a crash loop ends.

        `by=-1` takes a start back: a process that was asked to stop did not crash.

        Raises:
            DeviceDiskError: the disk is full, read-only or failing.
        """
        pointer = self.pointer()
        in_test = _require_test(pointer)
        boots = in_test.boots + by
        self._save(pointer.model_copy(update={"test": in_test.model_copy(update={"boots": boots})}))
        return boots

    def confirm(self) -> SlotRecord:
        """Let the slot in test serve, and raise the version counter, in one step.

        Raises:
            DeviceDiskError: the disk is full, read-only or failing.
        """
        pointer = self.pointer()
        record, before = _require_test(pointer).record, pointer.confirmed
        self._save(
            pointer.model_copy(
                update={
                    "confirmed": record,
                    "test": None,
                    "previous": before if before and before.slot != record.slot else None,
                    "highest_version": max(pointer.highest_version, record.version),
                    "highest_hash": record.tree_hash,
                }
            )
        )
        return record

    def revert(self) -> None:
        """Forget the slot in test; the old slot goes on serving. Does nothing when no slot is in test.

        Raises:
            DeviceDiskError: the disk is full, read-only or failing.
        """
        pointer = self.pointer()
        if pointer.test:
            self._save(pointer.model_copy(update={"test": None}))

    def fall_back(self) -> SlotRecord | None:
        """Let the version before the confirmed one serve again; returns it, or None when there is no way back.

        The counter stays: whoever left a version does not take an older one from the service either.

        Raises:
            DeviceDiskError: the disk is full, read-only or failing.
        """
        pointer = self.pointer()
        before = self.read(pointer.previous) if pointer.previous else None
        if before is None or damaged_files(before):
            return None
        self._save(pointer.model_copy(update={"confirmed": pointer.previous, "previous": None}))
        return pointer.previous

    def keep_counter(self, version: int, tree_hash: str | None) -> None:
        """Raise the pointer's counter to one remembered elsewhere (the pointer was lost).

        Raises:
            DeviceDiskError: the disk is full, read-only or failing.
        """
        pointer = self.pointer()
        if version > pointer.highest_version:
            self._save(pointer.model_copy(update={"highest_version": version, "highest_hash": tree_hash}))

    def _save(self, pointer: Pointer) -> None:
        numbered = pointer.model_copy(update={"generation": pointer.generation + 1})
        with disk_errors(self._folder, "switching slots"):
            make_private_folder(self._folder)
            replace_file(self._disk, self._pointer_path, numbered.model_dump_json(indent=1).encode())


def damaged_files(version: ActiveVersion) -> tuple[str, ...]:
    """Paths of a version's files that are not what its manifest says, whatever the disk made of them.

    Raises:
        DeviceDiskError: the disk cannot be read at all.
    """
    with disk_errors(version.tree, "checking the installed version"):
        return tuple(entry.path for entry in version.manifest.files if not _is_whole(version.tree, entry))


def bytes_to_write(manifest: VersionManifest, source: ActiveVersion | None) -> int:
    """Disk bytes a version needs beside `source`, whose unchanged files are linked rather than copied."""
    have = {(entry.path, entry.sha256) for entry in source.manifest.files} if source else set()
    return sum(entry.length for entry in manifest.files if (entry.path, entry.sha256) not in have)


def _is_whole(tree: Path, entry: FileEntry) -> bool:
    path = tree / entry.path
    try:
        return path.stat().st_size == entry.length and sha256_of(path) == entry.sha256
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EIO}:
            return False  # lost, or on a sector that went bad
        raise


def _require_test(pointer: Pointer) -> SlotInTest:
    if pointer.test is None:
        raise ValueError("no slot is in test")
    return pointer.test
