"""`lamella privacy statement` and `verify`: a release's signed statement and what it follows from; its check."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from server.cli.console import Service, console, open_service, show_json, words_aside
from server.cli.rollout_options import AsJson
from server.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from privacy.report.schema import BaseCost

_KEY_HELP = "The releases key's public half, in PEM, from a place that you trust."


def statement(
    model: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[int | None, typer.Option(help="Its version; the newest released one unless given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: MODEL-vVERSION-privacy.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a release's signed statement, the report and the ledgers that it names, and the manifest it is about.

    Who has this folder and the releases key's public half can check all of it, without this server.
    """
    words_aside(as_json)
    from privacy.chain import parse_chain
    from privacy.report import AuditReport, write_report
    from privacy.verification import MANIFEST_FILE, STATEMENT_FILE

    service = open_service()
    latest = service.registry.latest_released(model)
    number = version or (latest.number if latest else 0)
    kept = service.registry.statement(model, number)
    if kept is None:
        raise NotFoundError(
            f"There is no statement of v{number} of {model!r}: it is not published, or was before there were any."
        )
    folder = out or Path(f"{model}-v{number}-privacy")
    events, _ = parse_chain(service.artifacts.read_bytes(kept.ledger_sha256), "the ledger of the statement")
    report = AuditReport.from_json(service.artifacts.read_bytes(kept.report_sha256))
    write_report(report.model_copy(update={"events": events, "base": _with_ledgers(service, report.base)}), folder)
    # The very bytes that the statement names: another version of the program may write the same report otherwise.
    for name, digest in (("report.json", kept.report_sha256), (STATEMENT_FILE, kept.sha256)):
        (folder / name).write_bytes(service.artifacts.read_bytes(digest))
    (folder / MANIFEST_FILE).write_bytes(service.registry.version(model, number).manifest.to_bytes())
    console.print(
        f"Statement, report, ledger and manifest: {folder}\n"
        f"Signed with key {kept.keyid[:8]}. Check it anywhere: python -m privacy verify {folder} --key releases.pub",
        soft_wrap=True,
    )
    if as_json:
        files = sorted(path.name for path in folder.iterdir())
        show_json({"model": model, "version": number, "folder": str(folder), "files": files, "keyid": kept.keyid})


def _with_ledgers(service: Service, base: BaseCost | None) -> BaseCost | None:
    """The ledgers of the other models on the base, each as long as it was: ledgers only grow."""
    if base is None:
        return None
    others = [
        other.model_copy(update={"ledger": service.registry.privacy_events(model=other.model)[: other.events]})
        for other in base.others
    ]
    return base.model_copy(update={"others": tuple(others)})


def verify(
    folder: Annotated[
        Path, typer.Argument(help="What `lamella privacy statement` wrote.", exists=True, file_okay=False)
    ],
    key: Annotated[Path, typer.Option(help=_KEY_HELP)],
    as_json: AsJson = False,
) -> None:
    """Check a release's statement: signature, files, and every ε recomputed; exits with 1 when anything differs."""
    from privacy.__main__ import main
    from privacy.verification import verify as verified

    if as_json:
        tell_differences(lambda: verified(folder, key=key))
    raise typer.Exit(main(["verify", str(folder), "--key", str(key)]))


def tell_differences(check: Callable[[], list[str]]) -> NoReturn:
    """Run a check whose words go to stderr; print what differs as JSON, and exit with 1 when anything does."""
    from privacy.errors import BrokenChainError, StatementError

    try:
        with redirect_stdout(sys.stderr):
            differences = check()
    except (BrokenChainError, StatementError) as error:
        differences = [str(error)]
    show_json({"holds": not differences, "differences": differences})
    raise typer.Exit(1 if differences else 0)
