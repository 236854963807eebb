"""Events and audits → a report, and a report → files that anyone can check."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, NamedTuple

from privacy.accountant import ACCOUNTANT, epsilon_by_device, epsilon_curve, groups_of
from privacy.base_bill import example_epsilon_on_base, user_epsilon_on_base
from privacy.chain import chained_lines
from privacy.contribution import LEAVES_THE_DEVICE
from privacy.errors import ReportError
from privacy.promises import promised
from privacy.report.costs import device_cost, device_series, events_of, round_costs, rounds_of
from privacy.report.pages import to_html, to_markdown
from privacy.report.schema import AuditReport, BaseCost, OtherLedger, SecondOpinion
from privacy.report.users import gaussian_bill, user_cost
from privacy.second_opinions import opinions_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from privacy.accountant import Group
    from privacy.audits import Finding, MembershipResult
    from privacy.audits.finding import EarlierFinding
    from privacy.base_ledgers import BaseLedgers
    from privacy.budget import PrivacyBudget
    from privacy.event import PrivacyEvent, PrivacyUnit
    from privacy.report.schema import RunFacts, UserCost, UtilityFigure

REPORT_FILES = ("report.html", "report.md", "report.json", "ledger.jsonl")
Verdict = Literal["within_budget", "over_budget", "no_budget", "no_guarantee", "no_events"]
_WORST_FIRST: tuple[Verdict, ...] = ("no_guarantee", "over_budget", "no_budget", "within_budget", "no_events")
_LIBRARIES = ("lamella", "dp-accounting", "numpy", "scipy", "opacus", "torch", "flwr")
_CURVE_DELTAS = tuple(10.0**-exponent for exponent in range(3, 11))


class ReportPaths(NamedTuple):
    """Where a report's files are."""

    html: Path
    markdown: Path
    json: Path
    ledger: Path


def build_report(  # noqa: PLR0913 - each is one part of the report
    *,
    title: str,
    run: RunFacts,
    events: Sequence[PrivacyEvent],
    target_delta: float,
    budget: PrivacyBudget | None,
    user_budget: PrivacyBudget | None = None,
    base: BaseLedgers | None = None,
    membership: MembershipResult | None = None,
    findings: Sequence[Finding] = (),
    earlier_findings: Sequence[EarlierFinding] = (),
    utility: Sequence[UtilityFigure] = (),
    provenance: Mapping[str, str],
) -> AuditReport:
    """Recompute everything from `events` and put it together with what was measured.

    Give every event about the devices' examples, void and aborted rounds and earlier runs included: all of it is spent.
    `base` are the ledgers of other models on the same base: what they cost the same people is held to the budget too.

    Raises:
        UnknownEventError: an event cannot be accounted for.
    """
    spent = promised(events, "example")
    users = user_cost(events, user_budget)
    by_device = epsilon_by_device(spent, target_delta=target_delta)
    worst = max(by_device, key=lambda device: by_device[device], default=None)
    # Where runs made different promises, none of them may stand.
    is_nothing_promised = bool(events) and not spent and users is None
    epsilon_max = by_device[worst] if worst is not None else math.inf if is_nothing_promised else 0.0
    deltas = sorted({*_CURVE_DELTAS, target_delta}, reverse=True)
    rounds = rounds_of(spent)
    ledger, head = chained_lines(events)
    report = AuditReport(
        title=title,
        created_at=datetime.now(UTC),
        run=run,
        accountant=ACCOUNTANT,
        target_delta=target_delta,
        budget_epsilon=None if budget is None else budget.target_epsilon,
        budget_delta=None if budget is None else budget.target_delta,
        verdict="no_guarantee"
        if is_nothing_promised
        else _worst(_verdict(spent, epsilon_max, budget), _user_verdict(users)),
        epsilon_max=epsilon_max,
        worst_device=worst,
        devices=tuple(device_cost(device, by_device[device], spent) for device in by_device),
        rounds=round_costs(spent, rounds, target_delta),
        series=device_series(spent, rounds, by_device, target_delta),
        curve=tuple(zip(deltas, epsilon_curve(events_of(spent, worst), deltas), strict=True)),
        users=users,
        base=None if base is None else _base_cost(events, base, target_delta, budget, users),
        opinions=tuple(_opinions(events_of(spent, worst), target_delta, events, users)),
        membership=membership,
        findings=tuple(findings),
        earlier_findings=tuple(earlier_findings),
        utility=tuple(utility),
        leaves_the_device=LEAVES_THE_DEVICE,
        provenance=dict(provenance),
        software=_software(),
        event_count=len(events),
        ledger_sha256=hashlib.sha256(ledger).hexdigest(),
        ledger_head=head,
        events=tuple(events),
    )
    if report.overspent_on_base:
        return report.model_copy(update={"verdict": _worst(report.verdict, "over_budget")})
    return report


def _opinions(
    of_worst: Sequence[PrivacyEvent], target_delta: float, events: Sequence[PrivacyEvent], users: UserCost | None
) -> Iterator[SecondOpinion]:
    """Other accountants on the costliest device and the costliest user, where there is noise to account for."""
    bills: list[tuple[PrivacyUnit, tuple[Group, ...], float]] = []
    if of_worst:
        bills.append(("example", groups_of(of_worst), target_delta))
    if users is not None and not users.shares:
        bills.append(("user", gaussian_bill(events, target_delta=users.target_delta), users.target_delta))
    for unit, groups, delta in bills:
        if groups and all(noise > 0 for _, noise, _ in groups):
            found = opinions_on(groups, target_delta=delta)
            yield SecondOpinion(privacy_unit=unit, pld=found.pld, rdp=found.rdp, prv=found.prv)


def _base_cost(
    events: Sequence[PrivacyEvent],
    base: BaseLedgers,
    target_delta: float,
    budget: PrivacyBudget | None,
    users: UserCost | None,
) -> BaseCost:
    return BaseCost(
        bases=base.bases,
        others=tuple(
            OtherLedger(
                model=other.model,
                events=len(other.events),
                ledger_head=chained_lines(other.events)[1],
                runs=other.runs,
                counts_users=other.counts_users,
                ledger=other.events,
            )
            for other in base.others
        ),
        epsilon=example_epsilon_on_base(
            events, base.others, target_delta=target_delta if budget is None else budget.target_delta
        ),
        user_epsilon=None
        if users is None
        else user_epsilon_on_base(events, base.others, target_delta=users.target_delta),
    )


def write_report(report: AuditReport, folder: Path) -> ReportPaths:
    """Write report.html, report.md, report.json and ledger.jsonl into `folder`, each whole or not at all.

    Ledgers of other models on the base lie beside them, as ledger-of-MODEL.jsonl.

    Raises:
        ReportError: the report does not carry its events, so that nobody could recompute it.
    """
    if len(report.events) != report.event_count:
        raise ReportError("this report was read from JSON and carries no events; build it again from the ledger")
    contents = (
        to_html(report).encode(),
        to_markdown(report).encode(),
        report.to_json().encode(),
        chained_lines(report.events)[0],
    )
    others = {} if report.base is None else {one.file_name: one.ledger for one in report.base.others if one.ledger}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in REPORT_FILES]
    beside = [(folder / name, chained_lines(ledger)[0]) for name, ledger in others.items()]
    for path, content in (*zip(paths, contents, strict=True), *beside):
        unfinished = path.with_name(path.name + ".part")
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    return ReportPaths(*paths)


def _worst(*verdicts: Verdict) -> Verdict:
    """Each unit stands for itself: the report is as good as the worse of the two that were promised."""
    return min(verdicts, key=_WORST_FIRST.index)


def _user_verdict(users: UserCost | None) -> Verdict:
    if users is None:
        return "no_events"
    if math.isinf(users.epsilon):
        return "no_guarantee"
    if users.budget_epsilon is None:
        return "no_budget"
    return "within_budget" if users.epsilon <= users.budget_epsilon else "over_budget"


def _verdict(events: Sequence[PrivacyEvent], epsilon_max: float, budget: PrivacyBudget | None) -> Verdict:
    if not events:
        return "no_events"
    if math.isinf(epsilon_max):
        return "no_guarantee"
    if budget is None:
        return "no_budget"
    # The budget is judged at its own delta, which need not be the report's.
    spent = max(epsilon_by_device(events, target_delta=budget.target_delta).values())
    return "within_budget" if spent <= budget.target_epsilon else "over_budget"


def _software() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
