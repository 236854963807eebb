"""The fourteen sections, in the order of reading: what one must know to judge the claim, in plain words.

Contents after NIST SP 800-226 and "How to DP-fy ML" (Ponomareva et al. 2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.audits import audits_section, bounds_section, extraction_section
from privacy.report.claim import meaning_section
from privacy.report.exclusions import exclusions_section, numerics_section
from privacy.report.mechanism import mechanism_section, sampling_section, trust_section
from privacy.report.outcome import incidents_section, utility_section
from privacy.report.provenance import limits_section, provenance_section
from privacy.report.spending import spending_section

if TYPE_CHECKING:
    from privacy.report.blocks import Section
    from privacy.report.schema import AuditReport


def sections_of(report: AuditReport) -> tuple[Section, ...]:
    """Every section; what was not measured has its section too, which says so."""
    return (
        meaning_section(report),
        trust_section(report),
        mechanism_section(report),
        sampling_section(report),
        spending_section(report),
        exclusions_section(report),
        numerics_section(report),
        audits_section(report),
        bounds_section(report),
        extraction_section(report),
        utility_section(report),
        incidents_section(report),
        provenance_section(report),
        limits_section(report),
    )
