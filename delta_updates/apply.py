"""Make a target version from a source version and a package: streamed, checked, resumed, all or nothing."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delta_updates.disk import Disk, LocalDisk, disk_errors
from delta_updates.errors import DeltaError, IntegrityError, PackageLimitError, StorageError
from delta_updates.known_hashes import KnownHashes
from delta_updates.manifest import verify_tree
from delta_updates.package import PackageHeader, PackageReader
from delta_updates.sources import open_sources
from delta_updates.tree_writer import TreeWriter
from delta_updates.unfinished import Unfinished

DEFAULT_MAX_TARGET_BYTES = 64 << 30

ApplyProgress = Callable[[int, int], None]


class ApplyResult(BaseModel):
    """What applying did: the target's tree hash, seconds, and what became of its bytes.

    `bytes_written` were made now and `bytes_resumed` by an apply that was cut off; `files_linked` needed no bytes.
    """

    model_config = ConfigDict(frozen=True)

    target_hash: str
    seconds: float
    bytes_written: int
    bytes_resumed: int
    files_linked: int


def apply_package(  # noqa: PLR0913 - what most leave as it is has a default
    source: Path | None,
    package: Path,
    target: Path,
    *,
    expected_target_hash: str,
    max_target_bytes: int = DEFAULT_MAX_TARGET_BYTES,
    workers: int = 1,
    disk: Disk | None = None,
    on_progress: ApplyProgress | None = None,
    hashes: KnownHashes | None = None,
) -> ApplyResult:
    """Make `target` from `source` and `package`; afterwards it is there completely and durably, or not at all.

    Work happens in a folder beside `target` (`work_folder`). When it is cut off, or the disk fails, what was made stays
    there, and the next apply of the same package verifies it and goes on; an apply of another package, and an error
    that means "these bytes are bad", remove it. Memory is constant. Files that did not change are hard links to the
    source's: never edit a file of a version.

    Args:
        source: The version to start from; None for a full package.
        package: The package's file.
        target: Must not exist, be an empty folder, or be this very target already; its parent must exist.
        expected_target_hash: The tree hash from the signed manifest.
        max_target_bytes: Refuse a package that makes more.
        workers: How many chunks are computed at a time; each takes 15 to 80 MB.
        disk: What is written through; the real disk when None.
        on_progress: Called with the bytes of the target that are done, and all of them. What it raises ends the apply,
            as a cut does.
        hashes: What is known of the source's files; a chain of applies, or who hashed ahead, shares it.

    Raises:
        PackageFormatError: Drop these bytes (PackageLimitError: they ask for too much).
        SourceMismatchError: The source is not what the package starts from: ask for the full package.
        IntegrityError: The result is not what was expected.
        StorageError: The disk failed, is full, or `target` is in the way; call it again when that is repaired.
    """
    started = time.monotonic()
    order = _Order(
        source,
        package,
        target,
        expected_target_hash,
        max_target_bytes,
        workers,
        disk or LocalDisk(),
        on_progress,
        hashes or KnownHashes(),
    )
    with disk_errors(f"applying {package.name}"):
        # What an earlier apply left may have been made from other records: then it ends in another hash, once.
        result = order.run() or order.run()
    if result is None:
        raise IntegrityError(f"what was kept of {target} is changed while it is used; drop it and try again")
    return result.model_copy(update={"seconds": time.monotonic() - started})


@dataclass(frozen=True)
class _Order:
    source: Path | None
    package: Path
    target: Path
    expected_target_hash: str
    max_target_bytes: int
    workers: int
    disk: Disk
    on_progress: ApplyProgress | None
    hashes: KnownHashes

    def run(self) -> ApplyResult | None:
        """Return what was done; None when it must be done again, without what was kept."""
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(PackageReader(self.package))
            header = reader.header
            check_promise(header, self.expected_target_hash, self.max_target_bytes)
            sources = stack.enter_context(open_sources(self.source, header, self.hashes))
            work = stack.enter_context(Unfinished(self.target, reader.fingerprint, self.disk))
            if self._is_published(work, header):
                self.disk.sync_folder(self.target.parent)
                work.remove()
                return _result(header, bytes_resumed=header.target_bytes)
            self._require_room(work, header)
            writer = TreeWriter(work, sources, workers=self.workers, disk=self.disk, on_progress=self._teller(header))
            try:
                work.begin([packaged.file for packaged in header.files])
                for packaged in header.files:
                    writer.write(packaged, reader)
                reader.finish()
            except StorageError:
                raise
            except DeltaError as error:
                with contextlib.suppress(OSError):
                    work.remove()
                if isinstance(error, IntegrityError) and writer.bytes_resumed:
                    return None
                raise
            self._publish(work, writer)
            return _result(
                header,
                bytes_written=writer.bytes_written,
                bytes_resumed=writer.bytes_resumed,
                files_linked=writer.files_linked,
            )

    def _teller(self, header: PackageHeader) -> Callable[[int], None]:
        on_progress, total = self.on_progress, header.target_bytes
        return lambda done: on_progress(done, total) if on_progress else None

    def _is_published(self, work: Unfinished, header: PackageHeader) -> bool:
        """Return whether the target is there: an earlier apply was cut off while it removed what it worked with."""
        if work.tree.exists() or self.target.is_symlink() or not self.target.is_dir() or not any(self.target.iterdir()):
            return False
        try:
            verify_tree(self.target, [packaged.file for packaged in header.files])
        except IntegrityError:
            return False
        return True

    def _require_room(self, work: Unfinished, header: PackageHeader) -> None:
        target = self.target
        if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
            raise StorageError(f"{target} is in the way; remove it before applying")
        files = [packaged.file for packaged in header.files if packaged.method != "same"]
        to_write = sum(entry.length for entry in files) - work.kept_bytes(files)
        free = self.disk.free_bytes(target.parent)
        if to_write > free:
            raise StorageError(
                f"{to_write} bytes are needed in {target.parent}, {free} are free; free some space and try again"
            )

    def _publish(self, work: Unfinished, writer: TreeWriter) -> None:
        """Names first, deepest first, then the one switch that makes the target appear."""
        for folder in reversed(writer.folders):
            self.disk.sync_folder(folder)
        self.disk.rename(work.tree, self.target)
        self.disk.sync_folder(self.target.parent)
        # The target is there; what is left beside it is removed by whoever comes next.
        with contextlib.suppress(OSError):
            work.remove()


def check_promise(header: PackageHeader, expected_target_hash: str, max_target_bytes: int) -> None:
    """Refuse a package that makes something else than was promised, or more than is allowed.

    Raises:
        IntegrityError: It makes another tree.
        PackageLimitError: It makes too much.
    """
    if header.target_hash != expected_target_hash:
        raise IntegrityError(
            f"package makes {header.target_hash}, but {expected_target_hash} is expected; do not use it"
        )
    if header.target_bytes > max_target_bytes:
        raise PackageLimitError(f"package makes {header.target_bytes} bytes; at most {max_target_bytes} are allowed")


def _result(
    header: PackageHeader, *, bytes_written: int = 0, bytes_resumed: int = 0, files_linked: int = 0
) -> ApplyResult:
    return ApplyResult(
        target_hash=header.target_hash,
        seconds=0.0,
        bytes_written=bytes_written,
        bytes_resumed=bytes_resumed,
        files_linked=files_linked,
    )
