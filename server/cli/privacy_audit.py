"""`lamella privacy audit`: attack a run's mechanism and its result, and keep what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from server.cli.auditing import audited
from server.cli.console import console, open_service, problems, show_json, show_table
from server.errors import AuditingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.audits import Finding, MembershipResult
    from server.auditing import RunAudit
    from server.cli.console import Service

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def audit(
    run_id: Annotated[str, typer.Argument(help="Run id, from `lamella runs list`.")],
    part: Annotated[
        list[str] | None,
        typer.Option(help="Only this part, may be repeated: user, example, reconstruction, membership, exposure."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Measure again what was measured before, which stays in the run's report."),
    ] = False,
    members: Annotated[
        int, typer.Option(help="Most examples that were trained on, and as many others, to attack.", min=20)
    ] = 1000,
    canaries: Annotated[int, typer.Option(help="Canaries put into the mechanisms.", min=100, max=20_000)] = 1000,
    secrets: Annotated[int, typer.Option(help="Secrets put into the training text.", min=2, max=200)] = 8,
    repeats: Annotated[int, typer.Option(help="How often each secret stands there.", min=1, max=1000)] = 4,
    shadows: Annotated[
        int,
        typer.Option(
            help="Shadow runs for likelihood ratios (LiRA), 4 or more; each as long as the run.", min=0, max=64
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Audit a run: put canaries into its mechanisms, attack its result, and do it again without DP as a control.

    Each part that is finished is kept, so a command that was stopped goes on where it was. `lamella privacy report`
    shows the findings, and a release whose audit failed is refused. Exits with 1 when one failed.
    """
    from privacy.audits import Verdict, worst_verdict
    from server.auditing import PARTS, AuditPlan, open_audit

    chosen = tuple(part or PARTS)
    if unknown := sorted(set(chosen) - set(PARTS)):
        raise AuditingError(f"There is no part {', '.join(unknown)}. Parts are {', '.join(PARTS)}.")
    service = open_service()
    plan = AuditPlan(members=members, canaries=canaries, secrets=secrets, repeats=repeats, shadows=shadows)
    with console.status("Opening the run ..."):
        opened = open_audit(service.settings, service.registry, service.artifacts, run_id, plan, is_again=again)
    done = {known.asked_for for known in service.registry.audit_findings(run_id)}
    with audited(service.registry, "run.audit", f"{run_id}: {', '.join(chosen)}", is_long=True):
        for name in PARTS:
            if name in chosen:
                _one_part(service, opened, name, is_known=name in done and not again)
    findings = [known.finding for known in service.registry.audit_findings(run_id)]
    if as_json:
        show_json([finding.model_dump(mode="json") for finding in findings])
    else:
        _show(run_id, findings)
    if worst_verdict(findings) is Verdict.FAIL:
        raise typer.Exit(1)


def _one_part(service: Service, opened: RunAudit, name: str, *, is_known: bool) -> None:
    if is_known:
        problems.print(f"{name}: measured before (--again measures it anew).")
        return
    if reason := opened.reason_to_skip(name):
        problems.print(f"{name}: left out, {reason}.")
        return
    with _progress() as progress:
        task = progress.add_task(name, total=1, what="")
        found = getattr(opened, name)(
            lambda what, done, total: progress.update(task, completed=done, total=total, what=what)
        )
        progress.update(task, completed=1, total=1, what="done")
    findings, detail = _apart(found)
    service.registry.record_findings(opened.run.run_id, name, findings, detail=detail)


def _apart(found: tuple[Finding | MembershipResult, ...]) -> tuple[list[Finding], MembershipResult | None]:
    from privacy.audits import Finding, MembershipResult

    details = [one for one in found if isinstance(one, MembershipResult)]
    return [one for one in found if isinstance(one, Finding)], details[0] if details else None


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:>14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}"),
        console=problems,
    )


def _show(run_id: str, findings: Sequence[Finding]) -> None:
    show_table(
        f"Audit of {run_id}",
        ("part", "verdict", "what was found", "control", "sample"),
        [
            (
                finding.part,
                f"[{_COLOURS[finding.verdict]}]{finding.verdict}[/]",
                finding.reason,
                {True: "caught", False: "not caught", None: "none"}[finding.is_control_caught],
                finding.sample,
            )
            for finding in findings
        ],
    )
    console.print(f"What each means, with intervals and plots: lamella privacy report {run_id}")
