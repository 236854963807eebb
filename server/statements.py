"""The privacy gate: no release without a signed statement that follows from the ledger and keeps to the policy.

The statement is made from the registry's ledger, signed, stored and recorded before any package is built; what is then
judged is what was stored, as devices and auditors will read it. Publishing again after a crash judges the same one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from privacy import PrivacyError
from privacy.attestation import PrivacyStatement, ReleaseFacts, excess_over, overspent_on_base, unseal
from privacy.base_ledgers import OtherModel
from privacy.chain import chained_lines
from server.errors import GateRefusedError, PublishingError
from server.registry.records import StatementRecord

if TYPE_CHECKING:
    from privacy.event import PrivacyEvent
    from server.artifacts import ArtifactStore
    from server.registry import Registry, VersionRecord
    from server.signing import SignedMetadata

# Beyond it a guarantee is weak (Ponomareva et al. 2023, "How to DP-fy ML").
DEFAULT_MAX_EPSILON: Final = 10.0
_FIT_VERDICTS: Final = frozenset({"within_budget", "no_events"})


@dataclass(frozen=True)
class StatementGate:
    """Makes and judges the statement of a version.

    Attributes:
        registry: Where the ledger is.
        artifacts: Where statement, report and ledger are stored.
        metadata: What signs.
        max_epsilon: What no unit's ε may exceed; infinite to hold releases to their own budgets alone.
    """

    registry: Registry
    artifacts: ArtifactStore
    metadata: SignedMetadata
    max_epsilon: float

    def pass_(self, version: VersionRecord) -> StatementRecord:
        """The version's statement, made unless an earlier attempt has made it, and judged.

        Raises:
            GateRefusedError: It exceeds the policy; the candidate is rejected and the registry keeps the reason.
            PublishingError: It does not follow from the ledger, or is about another version: nothing is released.
            ConfigurationError, SigningError: The releases key is not there or does not open.
            StorageError: The disk refused, or an artifact is damaged.
        """
        record = self.registry.statement(version.model, version.number) or self._make(version)
        statement = self._read(version, record)
        self._require_sound(version, statement)
        if reason := self._objection(version.model, statement):
            told = f"its privacy statement exceeds the policy: {reason}"
            self.registry.reject(version.model, version.number, told)
            raise GateRefusedError(f"v{version.number} of {version.model!r} is rejected: {told}.")
        return record

    def _make(self, version: VersionRecord) -> StatementRecord:
        # The accountant and the report are imported where they are used: the service itself never makes a statement.
        from privacy.attestation.evidence import statement_of  # noqa: PLC0415
        from server.privacy_report import report_of_version  # noqa: PLC0415

        self.registry.verify_privacy_chain(version.model)
        report = report_of_version(self.registry, self.artifacts, version)
        for other in () if report.base is None else report.base.others:
            self.registry.verify_privacy_chain(other.model)
        manifest = version.manifest
        statement = statement_of(
            report,
            release=ReleaseFacts(
                model=version.model,
                version=version.number,
                tree_hash=manifest.tree_hash,
                base_hash=manifest.base_hash,
                run_id=version.run_id,
            ),
            manifest_path=version.manifest_path,
            manifest_sha256=hashlib.sha256(manifest.to_bytes()).hexdigest(),
        )
        envelope, key = self.metadata.seal_statement(statement.to_bytes())
        record = StatementRecord(
            model=version.model,
            version=version.number,
            sha256=self.artifacts.put_bytes(envelope),
            length=len(envelope),
            report_sha256=self.artifacts.put_bytes(report.to_json().encode()),
            ledger_sha256=self.artifacts.put_bytes(chained_lines(report.events)[0]),
            keyid=key.keyid,
            public_key=str(key.keyval["public"]),
        )
        self.registry.record_statement(record)
        return record

    def _read(self, version: VersionRecord, record: StatementRecord) -> PrivacyStatement:
        raw = self.artifacts.read_bytes(record.sha256)
        try:
            return PrivacyStatement.from_bytes(unseal(raw, self.metadata.releases_keys()))
        except PrivacyError as error:
            raise PublishingError(
                f"v{version.number} of {version.model!r} is not released: {error}. Make a new candidate."
            ) from error

    def _require_sound(self, version: VersionRecord, statement: PrivacyStatement) -> None:
        from privacy.attestation.evidence import differences_from  # noqa: PLC0415 - see `_make`

        facts, evidence = statement.predicate.release, statement.predicate.evidence
        found = [
            f"it is about {what} {stated}, not {actual}"
            for what, stated, actual in (
                ("model", facts.model, version.model),
                ("version", facts.version, version.number),
                ("tree", facts.tree_hash, version.manifest.tree_hash),
                ("manifest", statement.manifest_sha256, hashlib.sha256(version.manifest.to_bytes()).hexdigest()),
            )
            if stated != actual
        ]
        events = self.registry.privacy_events(model=version.model)
        # The ledger may have grown since; what this version was made from must be in what the statement counts.
        found += _left_out(version, events[evidence.events :])
        found += differences_from(statement, events[: evidence.events], self._others(statement))
        if found:
            raise PublishingError(
                f"v{version.number} of {version.model!r} is not released: its privacy statement does not hold: "
                f"{'; '.join(found)}. Find out who changed the ledger or the statement."
            )

    def _others(self, statement: PrivacyStatement) -> tuple[OtherModel, ...]:
        """The ledgers that the statement names beside its own, as long as they were then.

        Which runs counted is in the report that it names. What came after is not among them, as what the model's own
        ledger has grown by is not: the next run and the next release count it.
        """
        if statement.predicate.base is None:
            return ()
        from privacy.report import AuditReport  # noqa: PLC0415 - see `_make`

        report = AuditReport.from_json(self.artifacts.read_bytes(statement.predicate.evidence.report_sha256))
        return tuple(
            OtherModel(
                model=other.model,
                events=self.registry.privacy_events(model=other.model)[: other.events],
                runs=other.runs,
                counts_users=other.counts_users,
            )
            for other in (() if report.base is None else report.base.others)
        )

    def _objection(self, model: str, statement: PrivacyStatement) -> str | None:
        if reason := overspent_on_base(statement):
            return (
                f"its base is overspent: {reason}. Where nobody uses both, `lamella privacy budget {model} --apart` "
                "says so; else raise the budget, or base the next release on less training. Then make a new candidate"
            )
        if reason := excess_over(self.max_epsilon, statement):
            return reason
        verdict = statement.predicate.verdict
        return None if verdict in _FIT_VERDICTS else f"its verdict is {verdict.replace('_', ' ')}"


def _left_out(version: VersionRecord, later: tuple[PrivacyEvent, ...]) -> list[str]:
    missing = sum(event.run_id == version.run_id for event in later)
    return [f"{missing} events of run {version.run_id} are not in it"] if missing else []
