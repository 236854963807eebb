"""What a candidate must have passed before any work on its release begins: its loss, its run's audit, its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.audits import Verdict
from server.errors import ConflictError, GateRefusedError, PublishingError
from server.registry.gate_result import GateResult

if TYPE_CHECKING:
    from privacy.utility import GroupChange
    from server.registry import Registry, VersionRecord


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The evaluation gate: a candidate may be at most ``margin`` nats worse than its parent on held-out text.

    ``worst_group_margin`` bounds each group's rise, as far as it is beyond chance; None: groups decide nothing.
    """

    margin: float
    worst_group_margin: float | None = None

    def judge(self, *, candidate_loss: float, parent_loss: float, groups: tuple[GroupChange, ...] = ()) -> GateResult:
        """Compare two held-out losses (mean per example, in nats), and those of groups where there is a bound."""
        return GateResult(
            candidate_loss=candidate_loss,
            parent_loss=parent_loss,
            margin=self.margin,
            groups=groups,
            worst_group_margin=self.worst_group_margin,
        )


def pass_gate(registry: Registry, record: VersionRecord, gate: GateResult | None) -> VersionRecord:
    """Keep what was measured of a candidate, and refuse it where that is too little; the candidate with its gate.

    Raises:
        GateRefusedError: It did not pass, and is rejected for good.
        PublishingError: Nothing was measured, now or before.
    """
    if gate is None:
        require_gate(record)
        return record
    registry.record_gate(record.model, record.number, gate)
    if not gate.is_passed:
        registry.reject(record.model, record.number, gate.reason)
        raise GateRefusedError(f"v{record.number} of {record.model!r} is rejected: {gate.reason}.")
    return registry.version(record.model, record.number)


def require_gate(record: VersionRecord) -> None:
    """Refuse an adapter of which the registry does not know that it passed the evaluation gate.

    Raises:
        PublishingError: It was not measured, or did not pass.
    """
    if record.manifest.kind == "adapter" and (record.gate is None or not record.gate.is_passed):
        raise PublishingError(f"v{record.number} of {record.model!r} has not passed the evaluation gate: measure it.")


def require_releasable(registry: Registry, record: VersionRecord, *, is_audit_required: bool) -> None:
    """Refuse, before any work, a candidate whose audit or whose place among the versions forbids its release.

    Raises:
        GateRefusedError: Its run's audit failed, or is wanted and was never made.
        ConflictError: It is rejected or withdrawn, or older than the latest release.
    """
    if record.run_id is not None:
        require_audit(registry, record.run_id, is_audit_required=is_audit_required)
    _require_newest(registry, record)


def require_audit(registry: Registry, run_id: str, *, is_audit_required: bool) -> None:
    """Refuse a run whose own audit says that it does not keep what its ledger promises.

    Raises:
        GateRefusedError: A part of its audit failed, or an audit is wanted and has not passed its mechanisms.
    """
    findings = [known.finding for known in registry.audit_findings(run_id)]
    failed = [finding for finding in findings if finding.verdict is Verdict.FAIL]
    again = f"`lamella privacy audit {run_id}` measures again, `lamella privacy report {run_id}` explains"
    if failed:
        reasons = "; ".join(f"{finding.part}: {finding.reason}" for finding in failed)
        raise GateRefusedError(f"Run {run_id} is not released: its audit failed ({reasons}). {again}.")
    if not is_audit_required:
        return
    verdicts = {finding.part: finding.verdict for finding in findings}
    lacking = [part for part in _promised_parts(registry, run_id) if verdicts.get(part) is not Verdict.PASS]
    if lacking:
        told = ", ".join(f"{part} ({verdicts.get(part, 'not measured')})" for part in lacking)
        raise GateRefusedError(
            f"Run {run_id} is not released: this service wants the noise and the clipping of every run to have passed "
            f"an audit (LAMELLA_REQUIRE_AUDIT), and these have not: {told}. {again}; more --canaries decide more."
        )


def _promised_parts(registry: Registry, run_id: str) -> tuple[str, ...]:
    """What an audit must have found in order, for each unit that a run promised something to."""
    mode = registry.run(run_id).recipe.get("privacy-mode", "example")
    units = {"example": ("example",), "user": ("user",), "both": ("example", "user")}[str(mode)]
    return tuple(f"{what}-{unit}" for unit in units for what in ("noise", "clipping"))


def _require_newest(registry: Registry, record: VersionRecord) -> None:
    """Refuse before any work what `Registry.mark_released` would refuse after it."""
    if record.state in {"rejected", "withdrawn"}:
        raise ConflictError(
            f"v{record.number} of {record.model!r} is {record.state}: {record.reason}. Make a new candidate."
        )
    # A withdrawn one counts as well: devices have it.
    later = registry.versions(record.model, after=record.number)
    newest = max((other.number for other in later if other.state in {"released", "withdrawn"}), default=None)
    if newest is not None:
        raise ConflictError(
            f"v{newest} of {record.model!r} is released already, and versions never go down: "
            f"v{record.number} can no longer be released. Make a new candidate."
        )
