"""`lamella delta`: packages on folders, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from delta_updates import apply_package, build_package
from delta_updates.package import PackageReader
from server.cli.console import console, megabytes, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Build, apply and look into packages on folders, without a service.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def build(
    target: Annotated[Path, typer.Argument(help="Folder of the version to reach.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Package file to write.")],
    source: Annotated[
        Path | None, typer.Option(help="Folder of the version to start from; without it: a full package.", exists=True)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a package that turns SOURCE into TARGET."""
    result = build_package(source, target, out)
    if as_json:
        show_json(result.model_dump())
        return
    console.print(
        f"{out}: {megabytes(result.package_bytes)} for {megabytes(result.target_bytes)} "
        f"({result.ratio:.1%}) in {result.seconds:.1f} s"
    )
    console.print("tensors and files: " + ", ".join(f"{n} {kind}" for kind, n in sorted(result.codecs.items())))


@app.command()
def apply(
    package: Annotated[Path, typer.Argument(help="Package file.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    expected_hash: Annotated[str, typer.Option(help="Tree hash that the result must have (from a signed manifest).")],
    source: Annotated[Path | None, typer.Option(help="Folder of the installed version.", exists=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Apply a package; the folder appears complete and verified, or not at all."""
    result = apply_package(source, package, out, expected_target_hash=expected_hash)
    if as_json:
        show_json(result.model_dump())
        return
    console.print(
        f"{out}: {megabytes(result.bytes_written)} written, {result.files_linked} files linked, {result.seconds:.1f} s"
    )


@app.command()
def inspect(
    package: Annotated[Path, typer.Argument(help="Package file.", exists=True, dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Show what a package holds, without applying it."""
    with PackageReader(package) as reader:
        header = reader.header
    if as_json:
        show_json(header.model_dump())
        return
    console.print(f"source tree {header.source_hash or '(none: full package)'}\ntarget tree {header.target_hash}")
    show_table("Files", ("path", "length", "made by"), [(f.file.path, f.file.length, f.method) for f in header.files])
