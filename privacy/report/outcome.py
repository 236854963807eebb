"""What came of it: what the release is worth, and what did not go as planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.blocks import Bullets, Figure, Paragraph, Section, Table, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport, UtilityFigure

GROUPS_PLOT = "groups"
_NO_SUBGROUPS = (
    "Not measured for subgroups, as the held-out text has no labels of groups: noise and clipping cost most where "
    "people are few or write unlike the others, and the figures above are means over all."
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
            *_by_group(report.utility),
        ),
    )


def _by_group(utility: Sequence[UtilityFigure]) -> tuple[Block, ...]:
    measured = [figure for figure in utility if figure.groups]
    if not measured:
        return (Paragraph(_NO_SUBGROUPS),)
    return tuple(block for figure in measured for block in _groups_of(figure))


def _groups_of(figure: UtilityFigure) -> tuple[Block, ...]:
    worse = [group.name for group in figure.groups if group.is_worse]
    said = (
        f"It rose, beyond chance, for: {', '.join(worse)}." if worse else "For none of them did it rise beyond chance."
    )
    return (
        Paragraph(
            f"By group, as the held-out text is labelled. {said} Noise and clipping cost most where people are few or "
            "write unlike the others."
        ),
        Figure(
            GROUPS_PLOT,
            "Change of the loss in each group, with its 95% interval; right of the line it rose: worse than before.",
            "Change of the loss by group, with intervals.",
        ),
        Table(
            ("group", "examples", "people", "before", "after", "change", "95% interval"),
            tuple(
                (
                    group.name,
                    str(group.examples),
                    "not counted" if group.people is None else str(group.people),
                    number(group.before),
                    number(group.after),
                    f"{group.change:+.3f}",
                    "too few to say" if group.low is None else f"{group.low:+.3f} to {group.high:+.3f}",
                )
                for group in figure.groups
            ),
            caption=f"{figure.name}. An interval is for its group alone. Where people were counted it is robust to "
            "that one person's examples are alike; else it takes examples as independent, and is wider in truth.",
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
