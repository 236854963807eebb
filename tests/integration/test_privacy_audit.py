"""Flow (c): the report of a run, recomputed by somebody else, and the lies that it catches."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def recompute(folder, *, cwd):
    return subprocess.run(
        [sys.executable, "-m", "privacy", "recompute", str(folder)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_report_is_recomputed_a_changed_one_is_caught_and_the_budget_holds_over_runs(service, tmp_path):
    trained = json.loads(service.train("--rounds", "2", "--set", "budget-rounds=2", "--json"))
    run_id = trained["run_id"]
    assert [one["status"] for one in trained["rounds"]] == ["released"] * 2
    released = json.loads(service.lamella("release", run_id, "--json"))
    assert (released["version"], released["state"]) == (2, "released")
    assert released["gate"]["candidate_loss"] <= released["gate"]["parent_loss"] + released["gate"]["margin"]
    assert [one["source_version"] for one in released["packages"]] == [None, 1]
    out = tmp_path / "report"
    told = service.lamella("privacy", "report", run_id, "--out", str(out), "--audit-examples", "20", "--json")
    assert json.loads(told)["verdict"] == "within_budget"
    assert {p.name for p in out.iterdir()} == {"report.html", "report.md", "report.json", "ledger.jsonl"}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert len(report["devices"]) == 2
    assert 0 < report["epsilon_max"] <= 8
    assert 0 < report["membership"]["members"] == report["membership"]["non_members"] <= 20
    assert report["membership"]["verdict"] == "inconclusive"  # so few examples prove nothing, and it says so
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{report['epsilon_max']:.2f}" in page
    assert "<script" not in page
    # The release carries the same figure.
    assert service.versions()[-1]["facts"]["epsilon"] == pytest.approx(report["epsilon_max"], abs=1e-3)
    assert recompute(out, cwd=".").returncode == 0
    assert json.loads(service.lamella("privacy", "recompute", str(out), "--json")) == {"differences": [], "holds": True}
    stated = json.loads(service.lamella("privacy", "statement", "chat", "--out", str(tmp_path / "stated"), "--json"))
    assert "statement.json" in stated["files"]
    (tmp_path / "stated" / "ledger.jsonl").write_bytes(b"")
    key = next(service.offline_keys.glob("releases-*.pub"))
    checked = service.run("lamella", "privacy", "verify", stated["folder"], "--key", str(key), "--json", expect=1)
    assert not json.loads(checked.stdout)["holds"]
    report["epsilon_max"] /= 2
    (out / "report.json").write_text(json.dumps(report), encoding="utf-8")
    done = recompute(out, cwd=".")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    # The budget was for two rounds, and a new run does not begin a new one.
    told = service.train("--rounds", "1", "--set", "budget-rounds=2", "--set", "max-void-rounds=0", expect=1)
    assert "failed" in told
    (void,) = service.run_facts(service.runs()[0]["run_id"])["rounds"]
    assert void["status"] == "void"
    assert all("budget" in why for why in void["failures"].values())
