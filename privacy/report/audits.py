"""What the audits found, as a section: verdicts first, then each with its interval, sample, control and power."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from privacy.report.blocks import Bullets, Paragraph, Section, Table, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.audits import Finding

_TITLE = "Audits: is it as private as the ledger says?"


def audits_section(findings: Sequence[Finding]) -> Section:
    """The findings; without any, what that means."""
    if not findings:
        return Section(
            _TITLE,
            (Paragraph("Not audited. `lamella privacy audit RUN` puts the mechanisms and the result to the test."),),
        )
    return Section(
        _TITLE,
        (
            Paragraph(summary_of(findings)),
            Table(
                ("audit", "verdict", "measured", "95% interval", "claimed", "control"),
                tuple(_row(finding) for finding in findings),
                caption="Each against the same thing made faulty on purpose, which it must notice.",
                is_text=True,
            ),
            Bullets(tuple((f"{finding.part}:", _in_words(finding)) for finding in findings)),
            Paragraph(
                "Pass: the claim was put to a test that would have noticed a fault, and it stood. Fail: the claim is "
                "refuted. Inconclusive: neither, because the sample is too small, the claim too large to be refuted by "
                "any such test, or the control was not noticed. An audit can refute a guarantee, never prove it."
            ),
        ),
    )


def summary_of(findings: Sequence[Finding]) -> str:
    """One sentence: how many of which verdict."""
    counts = Counter(str(finding.verdict) for finding in findings)
    told = ", ".join(f"{counts[word]} {word}" for word in ("fail", "inconclusive", "pass") if counts[word])
    failed = [finding.part for finding in findings if finding.verdict == "fail"]
    return f"{len(findings)} audits: {told}." + (f" Do not release: {', '.join(failed)} failed." if failed else "")


def _row(finding: Finding) -> tuple[str, ...]:
    low, high = finding.interval
    caught = {True: "noticed", False: "not noticed", None: "none"}[finding.is_control_caught]
    return (
        finding.question,
        str(finding.verdict),
        f"{number(finding.measured)} {finding.unit}",
        f"{number(low)} to {number(high)}" if math.isfinite(high) else f"{number(low)} or more",
        number(finding.claimed),
        caught,
    )


def _in_words(finding: Finding) -> str:
    return (
        f"{finding.reason}. Sample: {finding.sample}. Control: {finding.control}. Power: {finding.power}. "
        f"How to read it: {finding.reading}."
    )
