"""What a report says in each mode, word for word: page one and the seven sections before what was measured.

A change of words is made with LAMELLA_WRITE_REPORTS=1, and read before it is committed.
"""

from __future__ import annotations

import math
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from simulators.share_events import event_in_shares

from privacy import PrivacyEvent
from privacy.accountant import ACCOUNTANT
from privacy.attestation.evidence import _guarantees as evidence_of_guarantees
from privacy.budget import PrivacyBudget
from privacy.report import AuditReport, RunFacts, build_report
from privacy.report.document import document_of
from privacy.report.pages import to_markdown

KEPT = Path(__file__).parent / "reports"
WHEN = datetime(2026, 3, 1, tzinfo=UTC)
PLAIN: dict[str, Any] = {"run_id": "run-1", "target_delta": 1e-5, "recorded_at": WHEN}
DEVICES = ("device-0", "device-1", "device-2")


def example(device: str, server_round: int) -> PrivacyEvent:
    return PrivacyEvent(
        **PLAIN,
        server_round=server_round,
        device_id=device,
        noise_multiplier=1.4,
        sampling_probability=0.1,
        steps=20,
        clipping_norm=1.0,
    )


def example_of_run_2() -> PrivacyEvent:
    return example("device-0", 1).model_copy(update={"run_id": "run-2", "event_id": "f" * 32})


def user(server_round: int, **changes: Any) -> PrivacyEvent:
    values = {
        "privacy_unit": "user",
        "population": "chat",
        "devices": DEVICES,
        "cohort_rule": "fixed",
        "mechanism": "gaussian_capped",
        "noise_multiplier": 3.0,
        "sampling_probability": 1.0,
        "steps": 1,
        "clipping_norm": 1.0,
    }
    return PrivacyEvent(**{**PLAIN, "server_round": server_round, **values, **changes})


POISSON = {
    "cohort_rule": "poisson",
    "mechanism": "poisson_subsampled_gaussian",
    "sampling_probability": 0.2,
    "noise_multiplier": 1.2,
}
EXAMPLES = [example(device, n) for n in (1, 2) for device in DEVICES]
MODES: dict[str, tuple[list[PrivacyEvent], dict[str, Any]]] = {
    "example": (EXAMPLES, {}),
    "example-secure": (EXAMPLES, {"secure_sum": True}),
    "user-fixed": ([user(1), user(2)], {}),
    "user-poisson": ([user(n, **POISSON) for n in (1, 2)], {}),
    "user-banded": ([user(n, mechanism="banded_toeplitz_gaussian", bands=4) for n in (1, 5)], {}),
    "user-shares": ([event_in_shares(1), event_in_shares(2)], {"secure_sum": True, "devices_enrolled": 40}),
    "both": ([*EXAMPLES, user(1), user(2)], {}),
    "both-shares": ([*EXAMPLES, event_in_shares(1)], {"secure_sum": True, "devices_enrolled": 40}),
    "both-then-example": ([*EXAMPLES, user(1), example_of_run_2()], {"run_id": "run-2"}),
    "both-then-user": ([*EXAMPLES, user(1), user(1, run_id="run-2")], {"run_id": "run-2"}),
}


def report_of(mode: str) -> AuditReport:
    events, facts = MODES[mode]
    run = {
        "run_id": "run-1",
        "model": "chat",
        "release": "v3",
        "base_hash": "ab" * 32,
        "rounds_planned": 2,
        "rounds_completed": 2,
        "devices_enrolled": 4,
        "settings": {"example-counts": "withheld"},
        **facts,
    }
    return build_report(
        title="Privacy report",
        run=RunFacts(**run),
        events=events,
        target_delta=1e-5,
        budget=PrivacyBudget(target_epsilon=8.0, target_delta=1e-5),
        user_budget=PrivacyBudget(target_epsilon=8.0, target_delta=1e-6),
        provenance={},
    )


def words_of(mode: str) -> str:
    """Without what changes from one machine, or one library's version, to the next."""
    text = to_markdown(report_of(mode)).split("## 8.")[0].replace(ACCOUNTANT, "ACCOUNTANT")
    return re.sub(r"Written .* UTC", "Written TODAY", text)


@pytest.mark.parametrize("mode", MODES)
def test_the_words_are_those_that_were_read(mode: str) -> None:
    kept, words = KEPT / f"{mode}.md", words_of(mode)
    if os.environ.get("LAMELLA_WRITE_REPORTS"):
        KEPT.mkdir(exist_ok=True)
        kept.write_text(words, encoding="utf-8")
    assert words == kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_said_per_example_where_only_users_are_protected(mode: str) -> None:
    text = words_of(mode)
    promises = mode.startswith(("example", "both")) and mode != "both-then-user"
    for words in ("costliest device", "DP-SGD on the device", "before anything leaves the device", "One example, not"):
        assert (words in text) == promises, words
    assert ("per user" in text) == (not mode.startswith("example") and mode != "both-then-example")
    assert ("Nothing is claimed for whole users: sums of run-2" in text) == (mode == "both-then-example")


@pytest.mark.parametrize("mode", MODES)
def test_only_a_poisson_cohort_adds_or_removes_a_user(mode: str) -> None:
    text = words_of(mode)
    assert ("of one user added or removed" in text) == (mode == "user-poisson")
    assert ("of one user replaced by zeros" in text) == (
        mode not in {"example", "example-secure", "user-poisson", "both-then-example"}
    )


@pytest.mark.parametrize("mode", MODES)
def test_page_one_has_the_limits_and_counts_who_took_part(mode: str) -> None:
    page = document_of(report_of(mode))
    assert len(page.limits) >= 3
    took_part = next(card.value for card in page.cards if card.label == "Took part")
    assert not took_part.startswith("0 ")


def test_runs_that_protect_different_units_protect_nobody_together() -> None:
    events = [example_of_run_2(), user(1)]
    report = build_report(
        title="t", run=report_of("both").run, events=events, target_delta=1e-5, budget=None, provenance={}
    )
    page = document_of(report)
    assert (report.verdict, report.epsilon_max, report.users, page.tone) == ("no_guarantee", math.inf, None, "bad")
    assert "No claim is made" in page.claim
    assert evidence_of_guarantees(report) == ()
    assert AuditReport.from_json(report.to_json()).verdict == "no_guarantee"


def test_where_devices_told_their_counts_that_is_said() -> None:
    report = report_of("example")
    told = report.model_copy(update={"run": report.run.model_copy(update={"settings": {"example-counts": "told"}})})
    assert "number of examples is public" in to_markdown(told)
    assert "number of examples stays on the device" in to_markdown(report)


@pytest.mark.parametrize("mode", ["example", "user-fixed", "user-poisson", "both"])
def test_other_accountants_stand_beside_the_reported_one(mode: str) -> None:
    report = report_of(mode)
    units = {"example": {"example"}, "both": {"example", "user"}}.get(mode, {"user"})
    assert {one.privacy_unit for one in report.opinions} == units
    for one in report.opinions:
        reported = report.epsilon_max if one.privacy_unit == "example" else report.users and report.users.epsilon
        assert one.pld == reported
        assert one.pld <= one.rdp
        assert one.prv == pytest.approx(one.pld, abs=0.02)
