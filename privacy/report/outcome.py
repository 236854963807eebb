"""What came of it: what the release is worth, and what did not go as planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.blocks import Bullets, Paragraph, Section, Table, number

if TYPE_CHECKING:
    from privacy.report.schema import AuditReport

_NO_SUBGROUPS = (
    "Not measured for subgroups: noise and clipping cost most where people are few or write unlike the others, and "
    "the figures above are means over all."
)


def utility_section(report: AuditReport) -> Section:
    """Quality before and after."""
    if not report.utility:
        nothing = Paragraph("Not measured: no figure was given to this report, for all or for any subgroup.")
        return Section("What the release is worth, and to whom", (nothing,))
    return Section(
        "What the release is worth, and to whom",
        (
            Table(
                ("measure", "before", "after", "change", "measured on"),
                tuple(
                    (u.name, number(u.before), number(u.after), f"{u.after - u.before:+.3f}", u.measured_on or "n/a")
                    for u in report.utility
                ),
            ),
            Paragraph(_NO_SUBGROUPS),
        ),
    )


def incidents_section(report: AuditReport) -> Section:
    """What did not go as planned."""
    items = [("", text) for text in report.run.incidents]
    if report.run.void_rounds:
        rounds = ", ".join(map(str, report.run.void_rounds))
        items.insert(0, ("Void rounds:", f"{rounds}. Nothing of them was released; what they cost is charged above."))
    if not items:
        return Section("Deviations and incidents", (Paragraph("None were reported to this report."),))
    return Section("Deviations and incidents", (Bullets(tuple(items)),))
