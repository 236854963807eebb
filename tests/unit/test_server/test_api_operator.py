import json

import pytest
from simulators.server_home import MODEL, make_event
from simulators.update_api import Service
from typer.testing import CliRunner

from server.cli.main import app


def get(api: Service, path: str, **params: object) -> dict[str, object]:
    answer = api.client.get(f"/v1/operator/{path}", params=params, headers=api.operator)
    assert answer.status_code == 200, answer.text
    return answer.json()


def walk(api: Service, path: str, **params: object) -> list[dict[str, object]]:
    """All items of a list, page by page."""
    items, after = [], {}
    while True:
        page = get(api, path, **params, **after)
        items += page["items"]
        if page["next"] is None:
            return items
        after = {"after": page["next"]}


def test_versions_are_shown_with_lineage_and_packages(shared_api: Service) -> None:
    assert get(shared_api, "models") == {"models": [MODEL]}
    versions = walk(shared_api, f"models/{MODEL}/versions", limit=2)
    assert [(item["number"], item["state"], item["manifest"]["parent"]) for item in versions] == [
        (1, "released", None),
        (2, "released", 1),
        (3, "released", 2),
    ]
    detail = get(shared_api, f"models/{MODEL}/versions/3")
    assert detail["version"]["gate"] == {
        "candidate_loss": 2.0,
        "parent_loss": 2.0,
        "margin": 0.1,
        "groups": [],
        "worst_group_margin": None,
    }
    assert [package["source_version"] for package in detail["packages"]] == [None, 2]
    assert walk(shared_api, "models/other/versions") == []


def test_devices_and_tokens_are_listed_and_hold_no_secret(api: Service) -> None:
    credentials = [api.enrol(f"device-{number}")["Authorization"].split(".")[1] for number in range(3)]
    devices = walk(api, "devices", limit=2)
    assert {device["name"] for device in devices} == {"device-0", "device-1", "device-2"}
    tokens = walk(api, "enrolment-tokens", limit=1)
    assert {token["device_id"] for token in tokens} == {device["device_id"] for device in devices}
    assert not [secret for secret in credentials if secret in f"{devices}{tokens}"]
    assert walk(api, "devices", model="other") == []


def test_a_devices_history_is_shown(shared_api: Service) -> None:
    device = shared_api.enrol()
    offer = shared_api.check(device, installed_version=2, installed_hash=shared_api.hash_of(2)).json()
    report = {"offer_id": offer["offer_id"], "version": 3, "outcome": "failed", "reason": "disk full"}
    shared_api.client.post("/v1/updates/report", json=report, headers=device)
    device_id = device["Authorization"].removeprefix("Bearer ").split(".")[0]
    history = get(shared_api, f"devices/{device_id}")
    assert history["device"]["installed_version"] == 2
    assert history["offers"][0]["package_path"] == offer["package"]["path"]
    assert (history["reports"][0]["outcome"], history["reports"][0]["reason"]) == ("failed", "disk full")


def test_runs_and_privacy_events_are_shown(api: Service) -> None:
    registry = api.home.registry
    for number in range(3):
        registry.create_run(
            f"run-{number}",
            model=MODEL,
            recipe={"cohort": 4},
            base_version=1,
            base_hash=registry.version(MODEL, 1).manifest.base_hash,
            parent_version=3,
        )
    events = [make_event("run-0", 1, device_id=f"user-{number}") for number in range(5)]
    registry.record_round(
        "run-0",
        1,
        status="released",
        replies=5,
        failures={},
        held_out_loss=2.5,
        events=events,
        artifacts={},
        facts={},
    )
    assert [run["run_id"] for run in walk(api, "runs", limit=1)] == ["run-2", "run-1", "run-0"]
    detail = get(api, "runs/run-0")
    assert (detail["run"]["status"], detail["rounds"][0]["held_out_loss"]) == ("running", 2.5)
    listed = walk(api, "privacy-events", limit=2, run_id="run-0")
    assert [item["event_id"] for item in listed] == [event.event_id for event in events]
    assert len(walk(api, "privacy-events", device_id="user-3", model=MODEL)) == 1


MASKED = {"phase": "reveal", "asked": 5, "answered": 2, "reason": "2 shares of <a> secret came in, 3 are needed"}


def test_a_round_whose_secure_sum_stayed_masked_says_why_wherever_it_is_shown(
    api: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = api.home.registry
    registry.create_run(
        "masked",
        model=MODEL,
        recipe={"cohort": 5},
        base_version=1,
        base_hash=registry.version(MODEL, 1).manifest.base_hash,
        parent_version=3,
    )
    registry.record_round(
        "masked",
        1,
        status="void",
        replies=0,
        failures={},
        held_out_loss=None,
        events=[],
        artifacts={},
        facts={"masked": MASKED},
    )
    detail = get(api, "runs/masked")
    assert detail["rounds"][0]["facts"]["masked"] == MASKED
    assert detail["health"]["masked"] == {"reveal": 1}
    monkeypatch.setenv("LAMELLA_HOME", str(api.home.settings.home))
    said = CliRunner().invoke(app, ["runs", "show", "masked"], env={"COLUMNS": "200"}).stdout
    assert "Round 1: the secure sum stayed masked while taking the masks off: 2 of 5 devices answered" in said
    assert "2 shares of <a> secret came in, 3 are needed" in said
    shown = json.loads(CliRunner().invoke(app, ["runs", "show", "masked", "--json"]).stdout)
    assert shown["rounds"][0]["masked"] == MASKED


def test_what_is_not_there_is_said_to_be_missing(shared_api: Service) -> None:
    for path in ("devices/" + "0" * 32, "runs/none", f"models/{MODEL}/versions/9", "runs?after=none"):
        answer = shared_api.client.get(f"/v1/operator/{path}", headers=shared_api.operator)
        assert answer.status_code == 404, answer.text
        assert "There is no" in answer.json()["detail"]
    answer = shared_api.client.post(
        "/v1/operator/enrolment-tokens", json={"model": "none"}, headers=shared_api.operator
    )
    assert answer.status_code == 404


def test_questions_that_do_not_fit_are_refused(shared_api: Service) -> None:
    for path in (
        "devices?limit=0",
        "devices?limit=501",
        "devices?after=%00",
        "devices/%00",
        "devices?model=../x",
        "runs/%00",
        "runs/..",
        f"models/{MODEL}/versions/0",
        f"models/{MODEL}/versions/99999999999",
        f"models/{MODEL}/versions?after=99999999999",
        "privacy-events?after=x",
        "privacy-events?device_id=%00",
    ):
        answer = shared_api.client.get(f"/v1/operator/{path}", headers=shared_api.operator)
        assert answer.status_code in {404, 422}, (path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
