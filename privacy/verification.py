"""Does a signed statement hold? Its signature, the files that it names, and ε recomputed from their ledger."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Final

from privacy.attestation import PrivacyStatement, read_key, unseal
from privacy.attestation.evidence import base_bill_of, differences_from, usefulness_of
from privacy.attestation.limits import names_of
from privacy.ledger import JsonlLedger
from privacy.recompute import base_ledgers, compare, read_bounded
from privacy.report import AuditReport

if TYPE_CHECKING:
    from pathlib import Path

STATEMENT_FILE: Final = "statement.json"
MANIFEST_FILE: Final = "manifest.json"


def verify(folder: Path, *, key: Path) -> list[str]:
    """Check FOLDER/statement.json against a public key and the files beside it; prints what it finds.

    Args:
        folder: Holds statement.json, report.json and ledger.jsonl; manifest.json, where it is there, is checked too.
        key: The public half of the releases key, in PEM, from a place that you trust.

    Returns:
        Where the statement does not hold, in words.

    Raises:
        PrivacyError: The folder or the key cannot be used, or the signature does not hold.
    """
    statement = PrivacyStatement.from_bytes(unseal(read_bounded(folder / STATEMENT_FILE), [read_key(key)]))
    _tell(statement)
    differences = compare(folder)
    evidence = statement.predicate.evidence
    report = read_bounded(folder / "report.json")
    if hashlib.sha256(report).hexdigest() != evidence.report_sha256:
        differences.append("report.json is not the file that the statement names (sha256)")
    if AuditReport.from_json(report).verdict != statement.predicate.verdict:
        differences.append(f"verdict: stated {statement.predicate.verdict}, report.json has another")
    if {finding.part: str(finding.verdict) for finding in AuditReport.from_json(report).findings} != {
        audit.part: audit.verdict for audit in statement.predicate.audits
    }:
        differences.append("the audits' verdicts differ from those in report.json")
    stated = statement.predicate.usefulness  # statements from before have none
    if stated and usefulness_of(AuditReport.from_json(report)) != stated:
        differences.append("what it says of the held-out loss differs from report.json")
    if hashlib.sha256(read_bounded(folder / "ledger.jsonl")).hexdigest() != evidence.ledger_sha256:
        differences.append("ledger.jsonl is not the file that the statement names (sha256)")
    differences += _differences_from_ledgers(statement, AuditReport.from_json(report), folder)
    manifest = folder / MANIFEST_FILE
    if manifest.exists() and hashlib.sha256(read_bounded(manifest)).hexdigest() != statement.manifest_sha256:
        differences.append("manifest.json is not the release that the statement is about (sha256)")
    return differences


def _differences_from_ledgers(statement: PrivacyStatement, report: AuditReport, folder: Path) -> list[str]:
    base = base_ledgers(report, folder)
    found = differences_from(
        statement, JsonlLedger(folder / "ledger.jsonl").events(), () if base is None else base.others
    )
    if statement.predicate.base == base_bill_of(report):
        return list(found)
    return [*found, "what it says of other models on its base differs from report.json"]


def _tell(statement: PrivacyStatement) -> None:
    release = statement.predicate.release
    lines = [
        "The signature holds.",
        f"{release.model} v{release.version}, tree {release.tree_hash}",
        f"{statement.subject[0].name}: sha256 {statement.manifest_sha256}",
        statement.predicate.claim,
    ]
    lines += [
        f"per {one.privacy_unit}: ε = {one.epsilon:.4f} at δ = {one.delta:g}, against {one.holds_against}"
        for one in statement.predicate.guarantees
    ]
    if (base := statement.predicate.base) is not None:
        lines += [
            f"with other models on its base ({names_of(base)}): per {one.privacy_unit} ε = {one.epsilon:.4f}"
            for one in base.guarantees
        ]
    lines += [f"audit {audit.part}: {audit.verdict}" for audit in statement.predicate.audits]
    sys.stdout.write("\n".join(lines) + "\n\n")
