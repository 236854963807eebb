"""The report for people: one document, as a self-contained page or as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.document import document_of
from privacy.report.render import html_of, markdown_of

if TYPE_CHECKING:
    from privacy.report.schema import AuditReport


def to_markdown(report: AuditReport) -> str:
    """The report as text, without plots."""
    return markdown_of(document_of(report))


def to_html(report: AuditReport) -> str:
    """The report as one self-contained page with plots.

    Raises:
        ReportError: matplotlib is not installed.
    """
    from privacy.report.plots import figures_of  # noqa: PLC0415 - recomputing must not need matplotlib

    return html_of(document_of(report), figures_of(report))
