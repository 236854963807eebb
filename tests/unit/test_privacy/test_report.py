"""The report: recomputed from events, the same in three forms, safe to open, checkable by anyone."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from simulators.share_events import RULE, event_in_shares

from privacy import LEAVES_THE_DEVICE, PrivacyEvent, ReportError
from privacy.__main__ import main
from privacy.accountant import epsilon, epsilon_by_device
from privacy.audits import Losses, MembershipResult, membership_audit
from privacy.budget import PrivacyBudget
from privacy.report import AuditReport, RunFacts, TensorFact, UtilityFigure, build_report, write_report
from privacy.report.claim import claim_of
from privacy.report.costs import _evaluated
from privacy.report.document import document_of
from privacy.report.pages import to_html, to_markdown
from privacy.report.render import html_of
from privacy.user_level import user_epsilon

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DELTA = 1e-5
NASTY = "<script>alert('x')</script> & \"q\" | `c` *b* [l](http://evil.example)"


def make_event(device: int, server_round: int, **changes: object) -> PrivacyEvent:
    values: dict[str, object] = {
        "run_id": "run-1",
        "server_round": server_round,
        "device_id": f"device-{device}",
        "noise_multiplier": 1.4,
        "sampling_probability": 0.1 if device else 0.2,
        "steps": 20,
        "clipping_norm": 1.0,
        "target_delta": DELTA,
        "recorded_at": datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=server_round),
    }
    return PrivacyEvent.model_validate({**values, **changes})


EVENTS = tuple(make_event(device, n) for n, cohort in enumerate([(0, 1), (0, 2), (1, 0)], 1) for device in cohort)


def make_run(**changes: Any) -> RunFacts:
    values: dict[str, Any] = {
        "run_id": "run-1",
        "model": "chat",
        "release": "v3",
        "parent": "v2",
        "base_hash": "ab" * 32,
        "rounds_planned": 3,
        "rounds_completed": 2,
        "void_rounds": (2,),
        "devices_enrolled": 4,
        "settings": {"rank": 8},
        "update_tensors": tuple(
            TensorFact(name=f"layers.{n}.attention.q_proj.lora_a", shape=(8, 64), dtype="float16", num_bytes=1024)
            for n in range(30)
        ),
    }
    return RunFacts(**{**values, **changes})


def make_report(**changes: Any) -> AuditReport:
    values: dict[str, Any] = {
        "title": "Privacy report",
        "run": make_run(),
        "events": EVENTS,
        "target_delta": DELTA,
        "budget": PrivacyBudget(target_epsilon=8.0, target_delta=DELTA),
        "provenance": {"tree_hash": "cd" * 32},
    }
    return build_report(**{**values, **changes})


@pytest.fixture(scope="module")
def measured() -> MembershipResult:
    random = np.random.default_rng(0)
    base, other = random.normal(3, 1, 200), random.normal(3, 1, 300)
    return membership_audit(
        Losses(list(base - 0.1), list(base)), Losses(list(other - random.normal(0.05, 0.1, 300)), list(other))
    )


@pytest.fixture(scope="module")
def report(measured: MembershipResult) -> AuditReport:
    utility = (UtilityFigure(name="held-out loss", before=3.4, after=3.2, measured_on="2 users"),)
    return make_report(membership=measured, utility=utility)


def test_every_figure_follows_from_the_events(report: AuditReport) -> None:
    by_device = epsilon_by_device(EVENTS, target_delta=DELTA)
    assert {device.device_id: device.epsilon for device in report.devices} == by_device
    assert report.worst_device == "device-0"
    assert report.epsilon_max == by_device["device-0"] == max(by_device.values())
    assert dict(report.curve)[DELTA] == report.epsilon_max
    assert report.participation_counts == {1: 1, 2: 1, 3: 1}
    assert [one.participants for one in report.rounds] == [2, 2, 2]
    assert report.rounds[-1].epsilon_so_far == report.epsilon_max
    assert report.rounds[0].epsilon_alone == epsilon([make_event(0, 1)], target_delta=DELTA)
    worst = next(one for one in report.series if one.device_id == "device-0")
    assert worst.points == tuple(
        (n, epsilon([make_event(0, 1, steps=20 * (n + 1))], target_delta=DELTA)) for n in range(3)
    )


@pytest.mark.parametrize(
    ("changes", "verdict", "headline"),
    [
        ({}, "within_budget", "Within budget"),
        ({"budget": PrivacyBudget(target_epsilon=1.0, target_delta=DELTA)}, "over_budget", "Over budget"),
        ({"budget": PrivacyBudget(target_epsilon=8.0, target_delta=1e-12)}, "over_budget", "Over budget"),
        ({"budget": None}, "no_budget", "No budget was set"),
        ({"events": (*EVENTS, make_event(9, 3, noise_multiplier=0.0))}, "no_guarantee", "No privacy guarantee"),
        ({"events": ()}, "no_events", "Nothing to report"),
        (
            {"events": (make_event(0, 1, steps=2000),), "budget": PrivacyBudget(target_epsilon=90, target_delta=DELTA)},
            "within_budget",
            "the budget is weak",
        ),
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: str, headline: str) -> None:
    found = make_report(**changes)
    assert found.verdict == verdict
    assert headline in to_markdown(found).splitlines()[4]
    assert headline in html_of(document_of(found), {})
    assert AuditReport.from_json(found.to_json()).epsilon_max == found.epsilon_max


def test_a_successful_attack_outweighs_a_kept_budget() -> None:
    random = np.random.default_rng(0)
    leak = membership_audit(
        Losses(list(random.normal(1, 0.1, 500)), [3.0] * 500), Losses(list(random.normal(3, 0.1, 1000)), [3.0] * 1000)
    )
    assert "The membership attack succeeds" in to_markdown(make_report(membership=leak))


def test_both_texts_say_everything(report: AuditReport) -> None:
    for text in (to_markdown(report).replace("\\", ""), re.sub(r"<[^>]+>", "", to_html(report))):
        for needed in (
            f"{report.epsilon_max:.3f}",
            "one example added or removed",
            "Poisson sampling",
            "Server sampling gives no amplification",
            "The number of examples is public",
            "Floating point",
            "cryptographic generator",
            "2 (void)",
            "python -m privacy recompute",
            "dp-accounting",
            report.ledger_sha256,
            "30 tensors, 30,720 bytes",
            "inconclusive",
            "held-out loss",
            *(name for name, _ in LEAVES_THE_DEVICE),
            *(why for _, why in LEAVES_THE_DEVICE if "'" not in why),
        ):
            assert needed in text, needed


class Strict(HTMLParser):
    """Collects tags and every address the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "action", "style"}]


def test_no_string_from_outside_becomes_markup() -> None:
    nasty = make_report(
        title=NASTY,
        run=make_run(
            model=NASTY,
            release=NASTY,
            parent=NASTY,
            base_hash=NASTY,
            settings={NASTY: NASTY},
            incidents=(NASTY,),
            update_tensors=(TensorFact(name=NASTY, shape=(1,), dtype=NASTY, num_bytes=1),),
        ),
        utility=(UtilityFigure(name=NASTY, before=1, after=2, measured_on=NASTY),),
        provenance={NASTY: NASTY},
    )
    page = Strict()
    page.feed(to_html(nasty))
    assert "script" not in page.tags
    assert "a" not in page.tags
    text = to_markdown(nasty)
    assert "<script" not in text
    assert not re.search(r"(?<!\\)\[l", text)
    for line in text.splitlines():
        if line.startswith("| ") and "script" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) >= 3


@pytest.mark.slow
def test_the_page_needs_no_network_and_its_plots_are_whole(report: AuditReport) -> None:
    html = to_html(report)
    page = Strict()
    page.feed(html)
    assert page.tags.count("img") == 4
    assert not [one for one in page.addresses if not one.startswith(("data:image/svg+xml;base64,", "border-top"))]
    assert "url(" not in html
    assert "@import" not in html
    for image in re.findall(r"base64,([A-Za-z0-9+/=]+)", html):
        svg = base64.b64decode(image).decode()
        assert svg.rstrip().endswith("</svg>")
        assert "mathdefault" not in svg.split("</defs>")[-1]
    assert html == to_html(report)


def test_written_files_hold_up_to_recomputing(
    report: AuditReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_report(report, tmp_path / "deep" / "folder")
    assert [path.name for path in paths] == ["report.html", "report.md", "report.json", "ledger.jsonl"]
    assert sorted(path.name for path in paths.html.parent.iterdir()) == sorted(path.name for path in paths)
    assert main(["recompute", str(paths.html.parent)]) == 0
    assert "The report holds." in capsys.readouterr().out
    again = AuditReport.from_json(paths.json.read_bytes())
    assert again.model_copy(update={"events": EVENTS}) == report
    with pytest.raises(ReportError, match="carries no events"):
        write_report(again, tmp_path)


@pytest.fixture(scope="module")
def written(report: AuditReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(report, folder)
    return folder


def tampered_epsilon(folder: Path) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report["devices"][0]["epsilon"] -= 0.01
    path.write_text(json.dumps(report))


def tampered_maximum(folder: Path) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report["epsilon_max"] = 0.1
    path.write_text(json.dumps(report))


def tampered_verdict(folder: Path) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report["budget_epsilon"] = 2.0
    path.write_text(json.dumps(report))


def tampered_curve(folder: Path) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report["curve"][-1][1] -= 0.1
    path.write_text(json.dumps(report))


def tampered_round(folder: Path) -> None:
    path = folder / "report.json"
    report = json.loads(path.read_text())
    report["rounds"][0]["epsilon_alone"] = 0.5
    path.write_text(json.dumps(report))


def less_spent(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def more_noise(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.write_text(path.read_text().replace('"noise_multiplier":1.4', '"noise_multiplier":1.5'))


def reordered(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    "tamper",
    [
        tampered_epsilon,
        tampered_maximum,
        tampered_verdict,
        tampered_curve,
        tampered_round,
        less_spent,
        more_noise,
        reordered,
    ],
)
def test_any_difference_is_found(
    tamper: Any,
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    tamper(tmp_path)
    assert main(["recompute", str(tmp_path)]) == 1
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["report.json", "ledger.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"{", b'{"format": 2}\n'])
def test_unusable_folders_are_a_sentence(
    name: str, content: bytes | None, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    # An empty or torn ledger is readable, and differs.
    assert main(["recompute", str(tmp_path)]) == (1 if name == "ledger.jsonl" and content in {b"", b"{"} else 2)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err


def test_help_describes_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["recompute", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert "recompute" in capsys.readouterr().out


def test_without_matplotlib_the_page_says_what_to_install(report: AuditReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r"install lamella\[server\]"):
        to_html(report)
    assert to_markdown(report)
    assert report.to_json()


def test_a_worse_release_is_said_on_page_one() -> None:
    worse = UtilityFigure(name="held-out loss", before=3.0, after=3.1)
    assert "worse than before" in to_markdown(make_report(utility=(worse,)))
    better = UtilityFigure(name="accuracy", before=0.3, after=0.4, is_lower_better=False)
    assert "worse than before" not in to_markdown(make_report(utility=(better,)))


@pytest.mark.parametrize("form", [1, 2])
def test_older_reports_stay_readable(form: int) -> None:
    raw = json.loads(make_report().to_json())
    del raw["base"]
    assert AuditReport.from_json(json.dumps(raw | {"format": form})).base is None


def test_json_is_strict_also_without_a_guarantee() -> None:
    raw = make_report(events=(make_event(0, 1, noise_multiplier=0.0),)).to_json()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(raw, parse_constant=refuse)["format"] == 4
    with pytest.raises(ReportError, match="not a privacy report"):
        AuditReport.from_json(raw.replace('"format": 4', '"format": 5', 1))


def test_several_runs_are_kept_apart_and_all_charged() -> None:
    earlier = [make_event(0, n, run_id="run-0") for n in (1, 2)]
    found = make_report(events=[*earlier, *EVENTS])
    assert [(one.run_id, one.server_round) for one in found.rounds] == [
        ("run-0", 1),
        ("run-0", 2),
        ("run-1", 1),
        ("run-1", 2),
        ("run-1", 3),
    ]
    assert found.epsilon_max == epsilon([make_event(0, 1, steps=100)], target_delta=DELTA)
    assert "run-0 / 1" in to_markdown(found)
    assert to_html(found)


def test_long_runs_evaluate_evenly_spread_rounds() -> None:
    assert _evaluated(3, 8) == {0, 1, 2}
    assert _evaluated(1, 8) == {0}
    assert _evaluated(0, 0) == set()
    many = _evaluated(1000, 100)
    assert {0, 999} <= many
    assert len(many) == 4


def user_event(server_round: int, **changes: object) -> PrivacyEvent:
    values: dict[str, object] = {
        "run_id": "run-1",
        "server_round": server_round,
        "privacy_unit": "user",
        "population": "chat",
        "devices": ("device-0", "device-1"),
        "cohort_rule": "fixed",
        "mechanism": "gaussian_capped",
        "noise_multiplier": 2.0,
        "sampling_probability": 1.0,
        "steps": 1,
        "clipping_norm": 1.0,
        "target_delta": 1e-6,
        "recorded_at": datetime(2026, 3, 1, tzinfo=UTC),
    }
    return PrivacyEvent.model_validate({**values, **changes})


USER_BUDGET = PrivacyBudget(target_epsilon=6.0, target_delta=1e-6)


def test_users_are_beside_examples_and_never_in_the_same_figure() -> None:
    users = [user_event(n) for n in (1, 2, 3)]
    alone = make_report()
    report = make_report(events=(*EVENTS, *users), user_budget=USER_BUDGET)
    assert report.devices == alone.devices
    assert report.epsilon_max == alone.epsilon_max
    assert report.rounds == alone.rounds
    assert report.users is not None
    assert report.users.epsilon == user_epsilon(users, target_delta=1e-6)
    assert report.users.participations == {3: 2}
    text = to_markdown(report)
    assert "per example" in text
    assert "The guarantee per user" in text
    assert "only per example" not in text
    assert "only per example" in to_markdown(alone)
    assert AuditReport.from_json(report.to_json()).users == report.users


def test_who_makes_the_noise_of_a_sum_is_said_and_priced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_devices = make_report(events=(event_in_shares(1), event_in_shares(2, devices=20)), user_budget=USER_BUDGET)
    assert by_devices.users is not None
    assert by_devices.users.shares == (RULE.shares(2.0),)
    assert by_devices.users.epsilon == by_devices.users.epsilon_if_drawing_is_known
    told = to_markdown(by_devices)
    for words in ("15 shares are counted on, of 20 devices", "Agarwal, Kairouz, Liu 2021", "replaced by zeros"):
        assert words in told
    assert "saw noisy sums alone" in claim_of(by_devices)
    assert "it sees each contribution" not in told

    mixed = make_report(events=(event_in_shares(1), user_event(2)), user_budget=USER_BUDGET)
    assert "it sees each contribution and adds the noise" in to_markdown(mixed)
    assert "which saw the updates" in claim_of(mixed)

    write_report(by_devices, tmp_path)
    assert main(["recompute", str(tmp_path)]) == 0
    assert "per user: RDP" in capsys.readouterr().out
    ledger = (tmp_path / "ledger.jsonl").read_text()
    levels = f'"levels":{RULE.shares(2.0).levels}'
    assert levels in ledger
    (tmp_path / "ledger.jsonl").write_text(ledger.replace(levels, '"levels":4'))
    assert main(["recompute", str(tmp_path)]) == 2
    assert "noise in shares" in capsys.readouterr().err  # such an event contradicts itself


@pytest.mark.parametrize(
    ("events", "verdict"),
    [
        ([user_event(1)], "within_budget"),
        ([event_in_shares(1)], "within_budget"),
        ([event_in_shares(n) for n in range(9)], "over_budget"),
        ([user_event(n) for n in range(9)], "over_budget"),
        ([user_event(1, noise_multiplier=0.0)], "no_guarantee"),
    ],
)
def test_the_verdict_is_the_worse_of_the_two_units(events: list[PrivacyEvent], verdict: str) -> None:
    for others in ((), EVENTS):
        report = make_report(events=(*others, *events), user_budget=USER_BUDGET)
        assert report.verdict == verdict
        page = document_of(report)
        assert (page.tone == "bad") == (verdict != "within_budget")
        assert "per user" in page.headline or verdict == "no_guarantee"


def test_a_ledger_of_another_head_and_more_noise_for_users_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(make_report(events=(*EVENTS, user_event(1)), user_budget=USER_BUDGET), tmp_path)
    assert main(["recompute", str(tmp_path)]) == 0
    path = tmp_path / "report.json"
    told = json.loads(path.read_text())
    told["users"]["epsilon"] /= 2
    path.write_text(json.dumps(told))
    assert main(["recompute", str(tmp_path)]) == 1
    assert "DIFFERS  users of chat" in capsys.readouterr().out


def test_every_report_has_its_fourteen_sections_whatever_was_measured() -> None:
    wanted = (
        *("The claim, and what it means", "Who must be trusted with what", "Mechanism and parameters"),
        *("Sampling as executed", "Privacy spent", "What is not covered, and what left the devices"),
        "Random numbers, floating point, dropout and aborted rounds",
        *("Attacks and audits, measured", "Measured bounds against the claim", "Extraction and reconstruction"),
        *("What the release is worth, and to whom", "Deviations and incidents"),
        *("Where this comes from, and how to check it", "Limits"),
    )
    for report in (make_report(), make_report(events=())):
        text = to_markdown(report)
        assert [line for line in text.splitlines() if line.startswith("## ")] == [
            f"## {number}. {heading}" for number, heading in enumerate(wanted, start=1)
        ]
