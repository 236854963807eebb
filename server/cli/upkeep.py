"""`lamella doctor` and `lamella gc`: find and mend what is wrong, remove what nobody needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.console import console, megabytes, open_service, show_json, show_table

if TYPE_CHECKING:
    from server.upkeep import Finding, Workshop

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def doctor(
    should_mend: Annotated[bool, typer.Option("--mend", help="Do what can be done without a person.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Compare lengths only, and read no artifact.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find what does not fit between registry, artifacts and signed metadata; exit code 1 when anything is left."""
    from server.upkeep import examine, mend

    with console.status("Reading all that the registry names ..."):
        findings = examine(_workshop(), read_all=not quick)
        left = mend(findings) if should_mend else findings
    if as_json:
        show_json([_as_json(finding, left) for finding in findings])
    elif findings:
        rows = [(f.kind, f.subject, f.problem, _state(f, left)) for f in findings]
        show_table("Findings", ("kind", "about", "problem", "state"), rows)
    else:
        console.print("Registry, artifacts and signed metadata fit together.")
    if left:
        raise typer.Exit(1)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove packages that no device needs any more and artifacts that nothing refers to."""
    from server.upkeep import collect

    with console.status("Looking for what nobody needs ..."):
        collected = collect(_workshop(), dry_run=dry_run)
    if as_json:
        show_json(
            {
                "packages": [package.path for package in collected.packages],
                "artifacts": list(collected.artifacts),
                "leftovers": list(collected.leftovers),
                "freed_bytes": collected.freed_bytes,
                "dry_run": dry_run,
            }
        )
        return
    verb = "Would remove" if dry_run else "Removed"
    console.print(
        f"{verb} {len(collected.packages)} packages and {len(collected.leftovers)} leftovers; "
        f"{len(collected.artifacts)} artifacts, {megabytes(collected.freed_bytes)}."
    )


def _workshop() -> Workshop:
    from server.upkeep import Workshop

    service = open_service()
    return Workshop(
        settings=service.settings,
        registry=service.registry,
        artifacts=service.artifacts,
        metadata=service.metadata,
    )


def _state(finding: Finding, left: tuple[Finding, ...]) -> str:
    if finding not in left:
        return "mended"
    return "needs a person" if finding.remedy is None else "can be mended: --mend"


def _as_json(finding: Finding, left: tuple[Finding, ...]) -> dict[str, object]:
    return {
        "kind": finding.kind,
        "subject": finding.subject,
        "problem": finding.problem,
        "is_mendable": finding.remedy is not None,
        "is_mended": finding not in left,
    }
