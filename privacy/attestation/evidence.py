"""Report → statement, and statement → does it follow from its ledger? Needs the accountant."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Final

from privacy.accountant import epsilon_by_device
from privacy.attestation.statement import (
    AuditVerdict,
    BaseBill,
    Evidence,
    Guarantee,
    LedgerHead,
    Predicate,
    PrivacyStatement,
    ReleaseFacts,
    Subject,
    Usefulness,
)
from privacy.base_bill import example_epsilon_on_base, user_epsilon_on_base
from privacy.chain import chained_lines
from privacy.event import UNITS
from privacy.promises import promised
from privacy.report.claim import claim_of
from privacy.user_level import user_epsilon

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.base_ledgers import OtherModel
    from privacy.event import PrivacyEvent
    from privacy.report.schema import AuditReport, UserCost

# Another version of the accountant may round its grid differently; a fault would be far larger.
RELATIVE: Final = 1e-4
ABSOLUTE: Final = 2e-3

_AGAINST_EXAMPLE = "everyone, the server included"
_AGAINST_USER = "everyone who sees releases; the server, which saw each contribution, is trusted"

_AGAINST_SHARES = (
    "everyone who sees releases; the server too, which saw noisy sums alone, as long as it keeps to the protocol, "
    "invents no devices"
)


def statement_of(
    report: AuditReport, *, release: ReleaseFacts, manifest_path: str, manifest_sha256: str
) -> PrivacyStatement:
    """What `report` says of a release, to be signed.

    Args:
        report: As `build_report` made it, with its events.
        release: Which release it is about.
        manifest_path: The signed path of the release's manifest.
        manifest_sha256: The hash of the manifest's bytes.
    """
    return PrivacyStatement(
        subject=(Subject.of(manifest_path, manifest_sha256),),
        predicate=Predicate(
            release=release,
            verdict=report.verdict,
            claim=claim_of(report),
            guarantees=_guarantees(report),
            base=base_bill_of(report),
            audits=tuple(AuditVerdict(part=finding.part, verdict=finding.verdict.value) for finding in report.findings),
            usefulness=usefulness_of(report),
            evidence=Evidence(
                ledger_sha256=report.ledger_sha256,
                ledger_head=chained_lines(report.events)[1],
                events=report.event_count,
                report_sha256=hashlib.sha256(report.to_json().encode()).hexdigest(),
                accountant=_accountant(report),
            ),
            issued_at=report.created_at,
        ),
    )


def usefulness_of(report: AuditReport) -> tuple[Usefulness, ...]:
    """What a report measured of the release's worth; what is not finite has no place in a statement."""
    return tuple(
        Usefulness(measure=figure.name, before=figure.before, after=figure.after, groups=figure.groups)
        for figure in report.utility[:8]
        if math.isfinite(figure.before) and math.isfinite(figure.after)
    )


def base_bill_of(report: AuditReport) -> BaseBill | None:
    """What a report says of the base's other models; None where there are none."""
    base = report.base
    if base is None:
        return None
    bills = {"example": base.epsilon, "user": base.user_epsilon}
    return BaseBill(
        bases=base.bases,
        others=tuple(
            LedgerHead(model=other.model, events=other.events, ledger_head=other.ledger_head) for other in base.others
        ),
        guarantees=tuple(
            own.model_copy(update={"epsilon": bills[own.privacy_unit], "delta": _delta_on_base(report, own)})
            for own in _guarantees(report)
            if bills[own.privacy_unit] is not None
        ),
    )


def _delta_on_base(report: AuditReport, own: Guarantee) -> float:
    return own.delta if own.privacy_unit == "user" or report.budget_delta is None else report.budget_delta


def differences_from(
    statement: PrivacyStatement, events: Sequence[PrivacyEvent], others: Sequence[OtherModel] = ()
) -> tuple[str, ...]:
    """Where a statement does not follow from a ledger's events, in words; empty: it follows.

    Args:
        statement: What is claimed.
        events: The ledger up to the statement's head: every event of the model at that time.
        others: The ledgers of the other models on its base, each up to the head that the statement names.

    Raises:
        UnknownEventError: An event cannot be accounted for.
    """
    evidence = statement.predicate.evidence
    raw, head = chained_lines(events)
    found = [
        f"{what}: stated {stated}, the ledger has {actual}"
        for what, stated, actual in (
            ("events", evidence.events, len(events)),
            ("head of the ledger", evidence.ledger_head, head),
            ("sha256 of the ledger", evidence.ledger_sha256, hashlib.sha256(raw).hexdigest()),
        )
        if stated != actual
    ]
    stated_units = {guarantee.privacy_unit: guarantee for guarantee in statement.predicate.guarantees}
    for unit in UNITS:
        own = promised(events, unit)
        guarantee = stated_units.get(unit)
        if (guarantee is None) != (not own):
            found.append(f"per {unit}: {len(own)} events in the ledger, {'no' if guarantee is None else 'a'} guarantee")
        elif guarantee is not None:
            actual = _epsilon(own, guarantee)
            if not is_same(guarantee.epsilon, actual):
                found.append(f"ε per {unit}: stated {guarantee.epsilon:.4f}, recomputed {actual:.4f}")
    return (*found, *_differences_on_base(statement.predicate.base, events, others))


def _differences_on_base(
    stated: BaseBill | None, events: Sequence[PrivacyEvent], others: Sequence[OtherModel]
) -> list[str]:
    heads = {other.model: (len(other.events), chained_lines(other.events)[1]) for other in others}
    named = {} if stated is None else {other.model: (other.events, other.ledger_head) for other in stated.others}
    found = [
        f"ledger of {model}, on the same base: stated {_known(named, model)}, found {_known(heads, model)}"
        for model in sorted(named | heads)
        if named.get(model) != heads.get(model)
    ]
    if stated is None or found:
        return found
    recompute = {"example": example_epsilon_on_base, "user": user_epsilon_on_base}
    units = {one.privacy_unit: one for one in stated.guarantees}
    for unit in UNITS:
        guarantee = units.get(unit)
        if guarantee is None:
            if promised(events, unit):
                found.append(f"ε per {unit} on the base: {unit} events in the ledger, and it is not stated")
            continue
        actual = recompute[unit](events, others, target_delta=guarantee.delta)
        if actual is None or not is_same(guarantee.epsilon, actual):
            told = "nothing" if actual is None else f"{actual:.4f}"
            found.append(f"ε per {unit} on the base: stated {guarantee.epsilon:.4f}, recomputed {told}")
    return found


def _known(heads: Mapping[str, tuple[int, str]], model: str) -> str:
    return f"{heads[model][0]} events to {heads[model][1][:12]}" if model in heads else "none"


def is_same(stated: float, found: float) -> bool:
    """Whether two figures agree as far as two versions of the accountant do."""
    return stated == found or math.isclose(stated, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _epsilon(events: Sequence[PrivacyEvent], guarantee: Guarantee) -> float:
    if guarantee.privacy_unit == "user":
        return user_epsilon(events, target_delta=guarantee.delta)
    return max(epsilon_by_device(events, target_delta=guarantee.delta).values())


def _accountant(report: AuditReport) -> str:
    if report.users is None or report.users.accountant is None:
        return report.accountant
    return f"{report.accountant}; per user {report.users.accountant}"


def _against(users: UserCost) -> str:
    """Against whom the guarantee per user holds; the weakest of its sums decides."""
    if users.trusts_server:
        return _AGAINST_USER
    most = min((shares.colluding for shares in users.shares), default=0)
    return f"{_AGAINST_SHARES}, and has no more than {most} of a round's devices on its side"


def _guarantees(report: AuditReport) -> tuple[Guarantee, ...]:
    found = []
    if report.devices:
        found.append(
            Guarantee(
                privacy_unit="example",
                epsilon=report.epsilon_max,
                delta=report.target_delta,
                holds_against=_AGAINST_EXAMPLE,
                budget_epsilon=report.budget_epsilon,
            )
        )
    if report.users is not None:
        found.append(
            Guarantee(
                privacy_unit="user",
                epsilon=report.users.epsilon,
                delta=report.users.target_delta,
                holds_against=_against(report.users),
                budget_epsilon=report.users.budget_epsilon,
            )
        )
    return tuple(found)
