"""Make the package that turns a source version into a target version, or a full package."""

import contextlib
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delta_updates.disk import Disk, LocalDisk, WritableFile, disk_errors
from delta_updates.errors import IntegrityError
from delta_updates.manifest import scan_tree, tree_hash
from delta_updates.package import PackageHeader, write_header
from delta_updates.plan import FilePlan, plan_file
from delta_updates.source_tree import SourceTree


class BuildResult(BaseModel):
    """What was built.

    `ratio` is package bytes over target bytes. `codecs` counts records by codec, and under `linked` the files that the
    device already has. `format` is the one it is written in.
    """

    model_config = ConfigDict(frozen=True)

    package_bytes: int
    target_bytes: int
    ratio: float
    seconds: float
    codecs: dict[str, int]
    target_hash: str
    source_hash: str | None
    format: int


def build_package(
    source: Path | None, target: Path, out: Path, *, workers: int = 1, disk: Disk | None = None
) -> BuildResult:
    """Write the package that makes `target` from `source`; the same trees always give the same bytes.

    `out` appears complete and durable, or not at all; a file that is there is replaced. Memory is constant.

    Args:
        source: Folder of the version that devices have; None for a full package.
        target: Folder of the version they shall have.
        out: The package's file.
        workers: How many chunks are computed at a time; each takes 20 to 90 MB. The bytes do not depend on it.
        disk: What is written through; the real disk when None.

    Raises:
        IntegrityError: A tree holds what a version must not hold, or changed meanwhile.
        StorageError: Reading or writing failed.
    """
    started = time.monotonic()
    with disk_errors(f"building {out.name}"):
        plans, header = _plan_tree(source, target)
        package_bytes, codecs = _write_durably(header, plans, out, workers, disk or LocalDisk())
    return BuildResult(
        package_bytes=package_bytes,
        target_bytes=header.target_bytes,
        ratio=package_bytes / max(header.target_bytes, 1),
        seconds=time.monotonic() - started,
        codecs=codecs,
        target_hash=header.target_hash,
        source_hash=header.source_hash,
        format=header.format,
    )


def _plan_tree(source: Path | None, target: Path) -> tuple[list[FilePlan], PackageHeader]:
    files = scan_tree(target)
    old = SourceTree(source)
    plans = [plan_file(target, entry, old) for entry in files]
    header = PackageHeader(
        source_hash=old.hash, target_hash=tree_hash(files), files=tuple(plan.packaged for plan in plans)
    )
    return plans, header


def _write_durably(
    header: PackageHeader, plans: list[FilePlan], out: Path, workers: int, disk: Disk
) -> tuple[int, dict[str, int]]:
    unfinished = out.with_name(f".{out.name}.building")
    disk.remove(unfinished)
    try:
        with contextlib.closing(disk.create(unfinished)) as stream:
            written = write_header(stream, header)
            codecs: Counter[str] = Counter()
            for plan in plans:
                written += _write_records(stream, plan, workers, codecs, has_made=header.has_made)
            stream.sync()
        disk.rename(unfinished, out)
        disk.sync_folder(out.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.remove(unfinished)
        raise
    return written, dict(sorted(codecs.items()))


def _write_records(stream: WritableFile, plan: FilePlan, workers: int, codecs: Counter[str], *, has_made: bool) -> int:
    packaged = plan.packaged
    if packaged.method == "same":
        codecs["linked"] += 1
        return 0
    written = made = 0
    for record in plan.records(workers):
        # A full package says nothing of what its records make: that follows from the records alone.
        raw = (record if has_made else replace(record, made=b"")).to_bytes()
        stream.write(raw)
        codecs[record.codec.name.lower()] += 1
        written += len(raw)
        made += record.length
    if made != packaged.file.length:
        raise IntegrityError(
            f"{packaged.file.path!r} changed while it was packaged ({packaged.file.length} to {made} bytes)"
        )
    return written
