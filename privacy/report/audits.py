"""What was measured: audits with interval, sample, control and power; bounds against the claim; extraction."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from privacy.audits.attack_figures import CLAIMED_AT_FPR
from privacy.report.blocks import Bullets, Paragraph, Section, Table, number
from privacy.report.membership import membership_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.audits import Finding
    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport

_TITLE = "Attacks and audits, measured"
_EXTRACTION = ("exposure", "reconstruction")


def audits_section(report: AuditReport) -> Section:
    """The findings and the membership attack; without any, what that means."""
    findings = report.findings
    if not findings:
        unaudited = (
            "Not audited. The command “lamella privacy audit RUN” puts the mechanisms and the result to the test."
        )
        return Section(_TITLE, (Paragraph(unaudited), *membership_blocks(report)))
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
            *_measured_before(report),
            *membership_blocks(report),
        ),
    )


def _measured_before(report: AuditReport) -> tuple[Block, ...]:
    if not report.earlier_findings:
        return ()
    return (
        Table(
            ("audit", "verdict", "measured on", "what was found"),
            tuple(
                (one.part, str(one.verdict), f"{one.recorded_at:%Y-%m-%d %H:%M} UTC", one.reason)
                for one in report.earlier_findings
            ),
            caption="Measured before, and made again since. An audit that is repeated until it passes has not passed.",
            is_text=True,
        ),
    )


def bounds_section(report: AuditReport) -> Section:
    """What attacks reached, held against what the proof allows."""
    held = tuple(finding for finding in report.findings if finding.claimed is not None)
    rows = tuple(
        (
            finding.question,
            f"{number(finding.interval[0])} {finding.unit}",
            number(finding.claimed),
            str(finding.verdict),
        )
        for finding in held
    )
    blocks: list[Block] = [
        Paragraph(
            "A measured lower bound that lies above what is claimed refutes the claim. One below it does not prove the "
            "claim: attacks get better, the proof holds against those to come."
        )
    ]
    if rows:
        blocks.append(Table(("audit", "at least (95%)", "claimed", "verdict"), rows, is_text=True))
    blocks.append(Paragraph(_membership_against_proof(report)))
    return Section("Measured bounds against the claim", tuple(blocks))


def _membership_against_proof(report: AuditReport) -> str:
    result = report.membership
    if result is None:
        return "No attack on membership was measured that the proof could be held against."
    point = result.claimed_point
    low, high = point.true_positive_interval
    measured = f"The membership attack found {low:.2%} to {high:.2%} of members at {CLAIMED_AT_FPR:.1%} false alarms"
    if not report.devices or math.isinf(report.epsilon_max):
        return f"{measured}. There is no proof per example to hold that against."
    allowed = min(1.0, math.exp(min(report.epsilon_max, 700.0)) * CLAIMED_AT_FPR + report.target_delta)
    verdict = "contradicts" if low > allowed else "does not contradict"
    return f"{measured}. The proof allows {allowed:.2%} at most: what was measured {verdict} it."


def extraction_section(report: AuditReport) -> Section:
    """Whether texts were got back: out of the release, or out of one device's update."""
    found = [finding for finding in report.findings if finding.part in _EXTRACTION]
    missing = [name for name in _EXTRACTION if name not in {finding.part for finding in found}]
    blocks: list[Block] = []
    if found:
        blocks.append(Bullets(tuple((f"{one.question}: {one.verdict}.", f"{one.reason}.") for one in found)))
    if missing:
        blocks.append(Paragraph(f"Not measured: {' and '.join(missing)}."))
    return Section("Extraction and reconstruction", tuple(blocks))


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
