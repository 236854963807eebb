"""Does a report's ε follow from its own ledger? Every figure is computed again and compared."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

from privacy.accountant import ACCOUNTANT
from privacy.attestation.evidence import is_same
from privacy.base_ledgers import BaseLedgers, OtherModel
from privacy.budget import PrivacyBudget
from privacy.chain import FIRST_HEAD, parse_chain
from privacy.errors import ReportError
from privacy.ledger import JsonlLedger
from privacy.report import AuditReport, build_report

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.report.schema import OtherLedger, UserCost

_MAX_REPORT_BYTES = 64 * 1024 * 1024
_FIRST_WITH_OPINIONS = 4


def compare(folder: Path) -> list[str]:
    """Print every figure of FOLDER/report.json beside the same one from FOLDER/ledger.jsonl; returns the differences.

    Raises:
        PrivacyError: The folder cannot be used.
    """
    report = AuditReport.from_json(read_bounded(folder / "report.json"))
    raw = read_bounded(folder / "ledger.jsonl")
    events = JsonlLedger(folder / "ledger.jsonl").events()
    again = build_report(
        title=report.title,
        run=report.run,
        events=events,
        target_delta=report.target_delta,
        budget=_budget(report),
        user_budget=_user_budget(report),
        base=base_ledgers(report, folder),
        provenance=report.provenance,
    )
    sys.stdout.write(
        f"{len(events)} events, {len(again.devices)} devices, delta {report.target_delta:g}\n{ACCOUNTANT}\n"
        f"{_of_users(again)}\n"
    )
    differences: list[str] = []
    if hashlib.sha256(raw).hexdigest() != report.ledger_sha256:
        differences.append("ledger.jsonl is not the file that the report names (sha256)")
    if report.ledger_head not in {None, again.ledger_head}:
        differences.append("ledger.jsonl ends at another head than the report names")
    if again.verdict != report.verdict:
        differences.append(f"verdict: report {report.verdict}, recomputed {again.verdict}")
    if report.format < _FIRST_WITH_OPINIONS:
        again = again.model_copy(update={"opinions": ()})
    reported, found = _figures(report), _figures(again)
    for name in reported | found:
        differences += _line(name, reported.get(name), found.get(name))
    return differences


def base_ledgers(report: AuditReport, folder: Path) -> BaseLedgers | None:
    """The ledgers of other models on the report's base, from the files beside it; None where it names none.

    Raises:
        PrivacyError: One is missing, does not hold, or never had the head that the report names.
    """
    if report.base is None:
        return None
    return BaseLedgers(bases=report.base.bases, others=tuple(_other(folder, one) for one in report.base.others))


def _other(folder: Path, stated: OtherLedger) -> OtherModel:
    path = folder / stated.file_name
    if not path.is_file():
        raise ReportError(
            f"{path} is missing: without it what the base has cost cannot be recomputed. `lamella privacy ledger "
            f"{stated.model} --out {stated.file_name}` writes it, at any later time too"
        )
    events, heads = parse_chain(read_bounded(path), path.name)
    # A ledger only grows: one from later has the head as well.
    if (FIRST_HEAD, *heads)[min(stated.events, len(heads))] != stated.ledger_head:
        raise ReportError(
            f"{path} does not have the head that the report names after {stated.events} events: it is another model's, "
            "or was changed"
        )
    return OtherModel(
        model=stated.model, events=events[: stated.events], runs=stated.runs, counts_users=stated.counts_users
    )


def _budget(report: AuditReport) -> PrivacyBudget | None:
    if report.budget_epsilon is None or report.budget_delta is None:
        return None
    try:
        return PrivacyBudget(target_epsilon=report.budget_epsilon, target_delta=report.budget_delta)
    except ValueError as error:
        raise ReportError(f"report.json: {error}") from error


def _user_budget(report: AuditReport) -> PrivacyBudget | None:
    users = report.users
    if users is None or users.budget_epsilon is None:
        return None
    try:
        return PrivacyBudget(target_epsilon=users.budget_epsilon, target_delta=users.target_delta)
    except ValueError as error:
        raise ReportError(f"report.json: {error}") from error


def _of_users(report: AuditReport) -> str:
    if report.users is None or report.users.accountant is None:
        return ""
    return f"per user: {report.users.accountant}\n"


def _figures(report: AuditReport) -> dict[str, float]:
    """Every recomputable figure by a name to print."""
    rounds = {
        f"round {one.run_id} / {one.server_round}, {what}": value
        for one in report.rounds
        for what, value in (("alone", one.epsilon_alone), ("so far", one.epsilon_so_far))
        if value is not None
    }
    return {
        "events": float(report.event_count),
        **{f"device {device.device_id}": device.epsilon for device in report.devices},
        **rounds,
        **{f"costliest device at delta {delta:g}": value for delta, value in report.curve},
        "maximum": report.epsilon_max,
        **({} if report.users is None else _figures_of_users(report.users)),
        **_figures_on_base(report),
        **_figures_of_others(report),
    }


def _figures_of_others(report: AuditReport) -> dict[str, float]:
    """RDP beside each unit's ε; PRV needs Opacus, which recomputing does not."""
    return {f"costliest per {one.privacy_unit}, by Rényi DP": one.rdp for one in report.opinions}


def _figures_on_base(report: AuditReport) -> dict[str, float]:
    if report.base is None:
        return {}
    found = {
        "costliest device, with other models on the base": report.base.epsilon,
        "costliest user, with other models on the base": report.base.user_epsilon,
    }
    return {name: value for name, value in found.items() if value is not None}


def _figures_of_users(users: UserCost) -> dict[str, float]:
    return {
        f"users of {users.population}": users.epsilon,
        f"users of {users.population}, drawing known": users.epsilon_if_drawing_is_known,
        f"rounds that users of {users.population} paid for": float(users.rounds),
    }


def _line(name: str, reported: float | None, found: float | None) -> list[str]:
    """Print one comparison; the difference to report, if there is one."""
    text = f"{name}: report {_text(reported)}, recomputed {_text(found)}"
    sys.stdout.write(text + "\n")
    if reported is None or found is None:
        return [text]
    return [] if is_same(reported, found) else [text]


def _text(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4f}"


def read_bounded(path: Path) -> bytes:
    """A file of a report's folder.

    Raises:
        ReportError: It is missing, or larger than what is read.
    """
    if not path.is_file():
        raise ReportError(f"{path} is missing; give the folder that write_report made")
    if path.stat().st_size > _MAX_REPORT_BYTES:
        raise ReportError(f"{path} has {path.stat().st_size} bytes, more than the {_MAX_REPORT_BYTES} that are read")
    return path.read_bytes()
