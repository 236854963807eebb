"""Where a report comes from, how anybody checks it, and what it cannot say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.blocks import Bullets, Code, Paragraph, Section, Table
from privacy.report.statements import (
    CAN_BE_REFUTED,
    LIMITS,
    NOT_COVERED,
    PER_EXAMPLE_ONLY,
    SERVER_SAW_UPDATES,
    USER_IS_A_DEVICE,
)

if TYPE_CHECKING:
    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport


def provenance_section(report: AuditReport) -> Section:
    """Hashes, origins and versions, and the commands that check them."""
    facts = {
        "base": report.run.base_hash,
        "parent release": report.run.parent or "none",
        "ledger.jsonl (sha256)": report.ledger_sha256,
        **({} if report.ledger_head is None else {"head of the ledger's chain": report.ledger_head}),
        **report.provenance,
    }
    return Section(
        "Where this comes from, and how to check it",
        (
            Table(("item", "value"), tuple(facts.items()), caption="Hashes and origins.", is_text=True),
            Table(("software", "version"), tuple(report.software.items()), is_text=True),
            *_how_to_check(report),
        ),
    )


def _how_to_check(report: AuditReport) -> tuple[Block, ...]:
    library = next((f" 'dp-accounting=={v}'" for name, v in report.software.items() if name == "dp-accounting"), "")
    return (
        Paragraph(
            "The ledger beside this page is all it takes. “recompute” computes every ε from it again and compares with "
            "report.json. A release's report has a signed statement beside it (statement.json: an in-toto statement "
            "that names this report and its ledger by hash): “verify” checks its signature, too, with the public half "
            "of the releases key. Both exit with 1 when anything differs, and need no network and no model."
        ),
        Code(
            f"# in a checkout of Lamella, or with it installed\npip install numpy scipy pydantic securesystemslib "
            f"cryptography{library}\npython -m privacy recompute FOLDER-OF-THIS-REPORT\n"
            "python -m privacy verify FOLDER-OF-THIS-REPORT --key releases.pub"
        ),
    )


def limits_section(report: AuditReport) -> Section:
    """What the report cannot say."""
    return Section("Limits", (Bullets((*(("", text) for text in _of_the_unit(report)), *LIMITS)),))


def first_limits(report: AuditReport) -> tuple[str, ...]:
    """The limits that belong beside the claim, in plain words."""
    excluded = f"{NOT_COVERED[0].removesuffix('.')}: {NOT_COVERED[1][0].lower()}{NOT_COVERED[1][1:]}"
    return (*_of_the_unit(report), excluded, CAN_BE_REFUTED)


def _of_the_unit(report: AuditReport) -> tuple[str, ...]:
    users = report.users
    if users is None:
        return (PER_EXAMPLE_ONLY,)
    is_seen = users.trusts_server and not report.speaks_of_examples
    return (USER_IS_A_DEVICE, SERVER_SAW_UPDATES) if is_seen else (USER_IS_A_DEVICE,)
