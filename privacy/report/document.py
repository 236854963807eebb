"""Page one: the verdict, the claim and the few figures that matter most; then the sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.audits.attack_figures import CLAIMED_AT_FPR
from privacy.audits.finding import Verdict, worst_verdict
from privacy.report.base import told_on_base
from privacy.report.blocks import Card, Document, number, probability, strength_of
from privacy.report.claim import claim_of
from privacy.report.provenance import first_limits
from privacy.report.sections import sections_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.audits import Finding
    from privacy.audits.membership import MembershipResult
    from privacy.report.blocks import Tone
    from privacy.report.schema import AuditReport, UserCost


def document_of(report: AuditReport) -> Document:
    """Put `report` into words."""
    tone, headline = _headline(report)
    return Document(
        title=report.title,
        subtitle=f"Model {report.run.model}, release {report.run.release}, run {report.run.run_id}. "
        f"Written {report.created_at:%Y-%m-%d %H:%M} UTC.",
        tone=tone,
        headline=headline,
        claim=claim_of(report),
        limits=first_limits(report),
        cards=_cards(report),
        sections=sections_of(report),
    )


def _headline(report: AuditReport) -> tuple[Tone, str]:
    spent = _spent(report)
    attack = None if report.membership is None else report.membership.verdict
    certain: dict[str, str] = {
        "no_events": "Nothing to report: the ledger holds no event.",
        "no_guarantee": "No privacy guarantee: at least one update was made without noise (ε = ∞).",
        "over_budget": f"Over budget: {told_on_base(report) if report.overspent_on_base else spent}; "
        f"the budget was {_budgets(report)}.",
    }
    if report.verdict in certain:
        return "bad", certain[report.verdict]
    failed = [finding.part for finding in report.findings if finding.verdict is Verdict.FAIL]
    if failed and failed != ["membership"]:
        return "bad", f"An audit failed ({', '.join(failed)}): the figures below do not hold as they stand."
    if attack is Verdict.FAIL:
        return "bad", f"The membership attack succeeds: trained examples can be traced ({spent})."
    if report.verdict == "no_budget":
        return "caution", f"No budget was set for this run. Spent: {spent}."
    if strength_of(max(report.epsilon_max, 0.0 if report.users is None else report.users.epsilon))[0] != "good":
        return "caution", f"Within budget, but the budget is weak: {spent}."
    endings: dict[Verdict | None, str] = {
        None: "Membership was not measured.",
        Verdict.INCONCLUSIVE: "The membership test cannot decide.",
        Verdict.PASS: "The membership test is passed.",
    }
    return "good" if attack is Verdict.PASS else "caution", f"Within budget: {spent}. {endings[attack]}"


def _spent(report: AuditReport) -> str:
    """Each unit's ε in words; a report with one unit need not name it."""
    found = []
    if report.devices or report.users is None:
        unit = " per example" if report.users is not None else ""
        found.append(f"ε = {number(report.epsilon_max)} at δ = {probability(report.target_delta)}{unit}")
    if report.users is not None:
        found.append(f"ε = {number(report.users.epsilon)} at δ = {probability(report.users.target_delta)} per user")
    return ", ".join(found)


def _budgets(report: AuditReport) -> str:
    found = [] if report.budget_epsilon is None else [number(report.budget_epsilon)]
    if report.users is not None and report.users.budget_epsilon is not None:
        found.append(f"{number(report.users.budget_epsilon)} per user")
    return "ε = " + ", ".join(found)


def _cards(report: AuditReport) -> tuple[Card, ...]:
    done, took_part = report.run.rounds_completed, sum(report.participation_counts.values())
    return (
        *([_examples_card(report)] if report.speaks_of_examples else []),
        *([] if report.users is None else [_users_card(report.users)]),
        _membership_card(report.membership),
        _audits_card(report.findings),
        Card(
            "Took part",
            f"{took_part} of {report.run.devices_enrolled} devices",
            f"{done} of {report.run.rounds_planned} rounds completed, {len(report.run.void_rounds)} void",
            "good",
        ),
        _utility_card(report),
    )


def _examples_card(report: AuditReport) -> Card:
    tone, strength = strength_of(report.epsilon_max)
    if report.verdict in {"over_budget", "no_guarantee", "no_events"}:
        tone = "bad"
    budget = "no budget set"
    if report.budget_epsilon is not None and report.budget_delta is not None:
        budget = f"budget {number(report.budget_epsilon, 2)} at δ = {probability(report.budget_delta)}"
    spent = f"ε = {number(report.epsilon_max, 2)}"
    return Card("Privacy spent per example", spent, f"costliest device, {strength}; {budget}", tone)


def _users_card(users: UserCost) -> Card:
    tone, strength = strength_of(users.epsilon)
    budget = "no budget set" if users.budget_epsilon is None else f"budget {number(users.budget_epsilon, 2)}"
    if users.budget_epsilon is not None and users.epsilon > users.budget_epsilon:
        tone = "bad"
    note = f"all users' whole contributions, {strength}; {budget} at δ = {probability(users.target_delta)}"
    return Card("Privacy spent per user", f"ε = {number(users.epsilon, 2)}", note, tone)


def _membership_card(result: MembershipResult | None) -> Card:
    if result is None:
        return Card("Membership attack", "not measured", "nothing is known about attacks in practice", "caution")
    tones: dict[Verdict, Tone] = {Verdict.PASS: "good", Verdict.FAIL: "bad", Verdict.INCONCLUSIVE: "caution"}
    point = result.claimed_point
    low, high = point.true_positive_interval
    note = f"finds {point.true_positive_rate:.2%} [{low:.2%}, {high:.2%}] at {CLAIMED_AT_FPR:.1%} false alarms"
    return Card("Membership attack", str(result.verdict), note, tones[result.verdict])


def _audits_card(findings: Sequence[Finding]) -> Card:
    if not findings:
        return Card("Audits", "none", "no mechanism of this run was put to the test", "caution")
    worst = worst_verdict(findings)
    tones: dict[Verdict | None, Tone] = {Verdict.PASS: "good", Verdict.FAIL: "bad", Verdict.INCONCLUSIVE: "caution"}
    passed = sum(finding.verdict is Verdict.PASS for finding in findings)
    failed = sum(finding.verdict is Verdict.FAIL for finding in findings)
    undecided = len(findings) - passed - failed
    return Card("Audits", f"{passed} of {len(findings)} pass", f"{failed} fail, {undecided} inconclusive", tones[worst])


def _utility_card(report: AuditReport) -> Card:
    if not report.utility:
        return Card("Usefulness", "not measured", "no figure was given", "caution")
    first = report.utility[0]
    note = f"{first.name}, before and after" + ("; worse than before" if first.is_worse else "")
    tone: Tone = "caution" if first.is_worse else "good"
    return Card("Usefulness", f"{number(first.before)} → {number(first.after)}", note, tone)
