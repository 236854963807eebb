"""A release tells its held-out loss by group: from labelled text to the signed statement, on real processes."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_a_release_tells_what_it_did_to_each_group(service, tmp_path):
    text = tmp_path / "text"
    (text / "held_out").mkdir(parents=True)
    for person in range(3):
        lines = [{"prompt": f"tea {n}?", "completion": f"very much, {n}"} for n in range(24)]
        (text / f"person-{person}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for person in range(5):
        judged = [{"prompt": f"tea {n}?", "completion": f"please {n}", "group": "ab"[n % 2]} for n in range(6)]
        (text / "held_out" / f"judge-{person}.jsonl").write_text("\n".join(map(json.dumps, judged)))
    data = ["--data", f"jsonl:{text}", "--fleet", str(tmp_path / "fleet"), "--set", "evaluation-examples=30"]
    service.train("--rounds", "1", *data)
    said = service.lamella("release", service.runs()[0]["run_id"], "--margin", "5")
    assert "Held-out loss by group" in said
    folder = tmp_path / "for-the-auditor"
    service.lamella("privacy", "statement", "chat", "--out", str(folder))
    (figure,) = json.loads((folder / "report.json").read_text())["utility"]
    assert [(one["name"], one["examples"], one["people"]) for one in figure["groups"]] == [("a", 15, 5), ("b", 15, 5)]
    assert all(group["low"] <= group["after"] - group["before"] <= group["high"] for group in figure["groups"])
    (key,) = service.offline_keys.rglob("releases-*.pub")
    service.lamella("privacy", "verify", str(folder), "--key", str(key))
