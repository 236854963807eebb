"""`lamella delta`: packages on folders or single files, without a service."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from delta_updates import apply_in_place, apply_package, build_package, changing_folder
from delta_updates.contents import package_contents
from delta_updates.in_place import DEFAULT_MAX_SCRATCH_BYTES
from delta_updates.memory import peak_memory_bytes
from delta_updates.package import PackageReader
from delta_updates.workers import usable_cores
from server.cli.console import console, megabytes, show_json, show_table
from server.cli.delta_files import as_tree, is_single_file, unwrap
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from delta_updates.apply import ApplyResult
    from delta_updates.build import BuildResult
    from delta_updates.in_place import InPlaceResult
    from server.cli.delta_peers import Peer

app = typer.Typer(
    no_args_is_help=True, help="Build, apply, look into and measure packages, on folders or files, without a service."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_TWO = 2


@app.command()
def build(
    versions: Annotated[
        list[Path],
        typer.Argument(
            metavar="[SOURCE] TARGET",
            help="What devices have, and what they shall have: two folders or two files. One alone: a full package.",
            exists=True,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Package file to write.", dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Build a package that turns SOURCE into TARGET."""
    source, target = _one_or_two(versions, "SOURCE and TARGET, or TARGET alone")
    _require_folder(out)
    with console.status("Building ..."), contextlib.ExitStack() as stack:
        result = build_package(
            None if source is None else as_tree(source, stack),
            as_tree(target, stack, like=source),
            out,
            workers=usable_cores(),
        )
    peak = peak_memory_bytes()
    if as_json:
        show_json(result.model_dump() | {"peak_memory_bytes": peak})
        return
    console.print(
        f"{out}: {megabytes(result.package_bytes)} for {megabytes(result.target_bytes)} "
        f"({result.ratio:.1%}) in {result.seconds:.1f} s, at most {megabytes(peak)} of memory"
    )
    console.print("chunks and files: " + ", ".join(f"{n} {kind}" for kind, n in sorted(result.codecs.items())))


@app.command()
def apply(
    versions: Annotated[
        list[Path],
        typer.Argument(
            metavar="[SOURCE] PACKAGE",
            help="What is installed, and the package. A full package stands alone.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder or file to make; needed without --in-place.")] = None,
    expected_hash: Annotated[
        str | None,
        typer.Option(help="Tree hash that the result must have, from a signed manifest; else the package's own word."),
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Turn the folder SOURCE into the result, without room for both.")
    ] = False,
    journal: Annotated[
        Path | None, typer.Option(help="With --in-place: folder for the journal; else beside SOURCE.", file_okay=False)
    ] = None,
    max_scratch_mb: Annotated[
        int, typer.Option(help="With --in-place: MB that the journal's folder may take.", min=0)
    ] = DEFAULT_MAX_SCRATCH_BYTES // 1_000_000,
    as_json: AsJson = False,
) -> None:
    """Apply a package; the result appears complete and verified, or not at all. Cut off, it goes on when run again."""
    source, package = _one_or_two(versions, "SOURCE and PACKAGE, or PACKAGE alone")
    _require_file(package)
    with PackageReader(package) as reader:
        header = reader.header
    expected = expected_hash or header.target_hash
    if in_place:
        tree = _tree_to_change(source, out)
        folder = journal or tree.absolute().with_name(f".{tree.name}.journal")
        with console.status("Applying in place ..."):
            changed = apply_in_place(
                tree, package, folder, expected_target_hash=expected, max_scratch_bytes=max_scratch_mb * 1_000_000
            )
        moved = f"{megabytes(changed.bytes_moved)} changed, {megabytes(changed.scratch_bytes)} of scratch"
        _show_applied(tree, changed, moved, as_json=as_json, is_vouched=expected_hash is not None)
        return
    if out is None:
        raise ConfigurationError("Say what to make, with --out; or let SOURCE become it, with --in-place.")
    _require_folder(out)
    if source is not None and not source.exists():
        raise ConfigurationError(f"{source} does not exist.")
    with console.status("Applying ..."), contextlib.ExitStack() as stack:
        old = None if source is None else as_tree(source, stack, named=header.files)

        def make(folder: Path) -> ApplyResult:
            return apply_package(old, package, folder, expected_target_hash=expected, workers=usable_cores())

        result = unwrap(out, make) if is_single_file(header.files) else make(out)
    resumed = f", {megabytes(result.bytes_resumed)} kept from before" if result.bytes_resumed else ""
    written = f"{megabytes(result.bytes_written)} written{resumed}, {result.files_linked} files linked"
    _show_applied(out, result, written, as_json=as_json, is_vouched=expected_hash is not None)


def _tree_to_change(source: Path | None, out: Path | None) -> Path:
    if source is None or out is not None:
        raise ConfigurationError("--in-place takes SOURCE and PACKAGE, and no --out: SOURCE becomes the result.")
    # While it is changed, it is not where it was.
    if not source.is_dir() and not changing_folder(source.absolute()).is_dir():
        raise ConfigurationError(f"{source} is not a folder; only folders are changed in place.")
    return source.absolute()


def _show_applied(
    out: Path, result: ApplyResult | InPlaceResult, what: str, *, as_json: bool, is_vouched: bool
) -> None:
    if as_json:
        show_json(result.model_dump() | {"peak_memory_bytes": peak_memory_bytes()})
        return
    console.print(f"{out}: {what}, {result.seconds:.1f} s")
    if not is_vouched:
        console.print("No --expected-hash: this is whole and undamaged, but nobody vouches for where it comes from.")


@app.command()
def inspect(
    package: Annotated[Path, typer.Argument(help="Package file.", exists=True, dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Check a package from end to end, and show what it holds, without applying it."""
    found = package_contents(package)
    header = found.header
    if as_json:
        show_json(
            header.model_dump()
            | {"format": found.format, "package_bytes": found.package_bytes, "codecs": found.codecs}
            | {
                "files": [
                    one.packaged.model_dump() | {"package_bytes": one.package_bytes, "codecs": one.codecs}
                    for one in found.files
                ]
            }
        )
        return
    console.print(f"source tree {header.source_hash or '(none: full package)'}\ntarget tree {header.target_hash}")
    console.print(f"format {found.format}; {megabytes(found.package_bytes)} make {megabytes(header.target_bytes)}")
    rows: list[tuple[object, ...]] = [
        (
            one.packaged.file.path,
            one.packaged.file.length,
            one.packaged.method,
            one.package_bytes,
            ", ".join(f"{count} {codec}" for codec, count in one.codecs.items()),
        )
        for one in found.files
    ]
    show_table("Files", ("path", "length", "made by", "bytes here", "records"), rows)


@app.command()
def bench(
    source: Annotated[Path, typer.Argument(help="What devices have: a folder or a file.", exists=True)],
    target: Annotated[Path, typer.Argument(help="What they shall have.", exists=True)],
    as_json: AsJson = False,
) -> None:
    """Build and apply a package here, beside zstd, `zstd --patch-from` and (for small files) bsdiff4."""
    from server.cli.delta_peers import measure_peers

    with tempfile.TemporaryDirectory(prefix="lamella-delta-") as scratch, contextlib.ExitStack() as stack:
        old, new = as_tree(source, stack), as_tree(target, stack, like=source)
        package = Path(scratch) / "package"
        with console.status("Building and applying ..."):
            built = build_package(old, new, package, workers=usable_cores())
            applied = apply_package(
                old,
                package,
                Path(scratch) / "applied",
                expected_target_hash=built.target_hash,
                workers=usable_cores(),
            )
        peak = peak_memory_bytes()
        with console.status("Running the peers ..."):
            peers = measure_peers(old, new)
    if as_json:
        show_json(
            built.model_dump()
            | {"apply_seconds": applied.seconds, "peak_memory_bytes": peak, "peers": {n: p.to_json() for n, p in peers}}
        )
        return
    _show_comparison(built, applied, peak, peers)


def _show_comparison(built: BuildResult, applied: ApplyResult, peak: int, peers: list[tuple[str, Peer]]) -> None:
    def speed(seconds: float | None) -> str:
        return "-" if seconds is None else f"{built.target_bytes / 1e6 / max(seconds, 1e-9):,.0f} MB/s"

    rows: list[tuple[object, ...]] = [
        ("lamella", megabytes(built.package_bytes), f"{built.ratio:.2%}", speed(built.seconds), speed(applied.seconds))
    ]
    for name, peer in peers:
        size = "-" if peer.size is None else megabytes(peer.size)
        share = "-" if peer.size is None else f"{peer.size / max(1, built.target_bytes):.2%}"
        rows.append((name, size, share, speed(peer.build_seconds), peer.why_not or speed(peer.apply_seconds)))
    show_table("Packages", ("by", "size", "of the target", "build", "apply"), rows)
    console.print(f"Building and applying ours took at most {megabytes(peak)} of memory, this program included.")


def _one_or_two(paths: list[Path], what: str) -> tuple[Path | None, Path]:
    if len(paths) > _TWO:
        raise ConfigurationError(f"Give {what}; got {len(paths)} paths.")
    return (paths[0] if len(paths) == _TWO else None), paths[-1]


def _require_file(package: Path) -> None:
    if not package.is_file():
        raise ConfigurationError(f"{package} is not a file; give the package that `lamella delta build` wrote.")


def _require_folder(out: Path) -> None:
    if not out.absolute().parent.is_dir():
        raise ConfigurationError(
            f"The folder {out.absolute().parent} does not exist; make it, or choose another --out."
        )
