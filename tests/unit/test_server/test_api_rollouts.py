"""Rollouts over REST: what an operator does, and what devices then are offered."""

from pathlib import Path

import pytest
from simulators.server_home import MODEL, open_home
from simulators.update_api import Service

from server.errors import ConflictError
from server.publishing import Gate, publish, restore
from server.rollouts import Launch, parse_plan

PLAN = {"phases": [50, 100], "min_reports": 2, "soak_hours": 0, "failure_threshold": 0.5}


def call(api: Service, method: str, path: str, body: object = None, *, status: int = 200) -> dict[str, object]:
    answer = api.client.request(method, f"/v1/operator/{path}", json=body, headers=api.operator)
    assert answer.status_code == status, answer.text
    return answer.json()


def id_of(device: dict[str, str]) -> str:
    return device["Authorization"].removeprefix("Bearer ").split(".")[0]


def has(api: Service, version: int) -> dict[str, object]:
    return {"installed_version": version, "installed_hash": api.hash_of(version)}


def report(api: Service, device: dict[str, str], offer: dict[str, object], outcome: str, **more: object) -> None:
    body = {"offer_id": offer["offer_id"], "version": offer["version"], "outcome": outcome, **more}
    answer = api.client.post("/v1/updates/report", json=body, headers=device)
    assert answer.status_code == 204, answer.text


@pytest.fixture
def staged(api: Service) -> Service:
    """v4 is released as a draft: nobody gets it yet."""
    home = api.home
    candidate = home.candidate(4, parent=3)
    publish(
        home.registry,
        home.artifacts,
        home.metadata,
        model=MODEL,
        version=candidate.number,
        gate=Gate(margin=0.1).judge(candidate_loss=2.0, parent_loss=2.0),
        work=home.settings.work_dir,
        launch=Launch(plan=parse_plan(**PLAN), state="draft"),
    )
    return api


def draft_of(api: Service) -> dict[str, object]:
    (rollout,) = call(api, "GET", "rollouts?state=draft")["items"]
    return rollout


def test_a_release_as_it_always_was_is_listed_as_a_finished_rollout(shared_api: Service) -> None:
    listed = call(shared_api, "GET", f"rollouts?model={MODEL}&limit=2")
    assert [(item["version"], item["state"]) for item in listed["items"]] == [(3, "finished"), (2, "finished")]
    rest = call(shared_api, "GET", f"rollouts?model={MODEL}&limit=2&after={listed['next']}")
    assert [item["version"] for item in rest["items"]] == [1]
    channels = call(shared_api, "GET", f"models/{MODEL}/channels")
    assert [(move["channel"], move["version"]) for move in channels["channels"]] == [("stable", 3)]
    assert [move["version"] for move in channels["history"]] == [1, 2, 3]


def test_a_rollout_from_draft_to_finished(staged: Service) -> None:
    devices = [staged.enrol(f"device-{number}") for number in range(12)]
    draft = draft_of(staged)
    assert {staged.check(device, **has(staged, 3)).status_code for device in devices} == {204}
    path = f"rollouts/{draft['rollout_id']}"
    started = call(staged, "POST", f"{path}/start", {"revision": draft["revision"]})
    assert (started["state"], started["percentage"] if "percentage" in started else started["phase"]) == ("running", 0)
    answers = [staged.check(device, **has(staged, 3)) for device in devices]
    first = [answer.json() for answer in answers if answer.status_code == 200]
    assert 0 < len(first) < 12
    assert {offer["version"] for offer in first} == {4}
    for device, answer in zip(devices, answers, strict=True):
        if answer.status_code == 200:
            report(
                staged, device, answer.json(), "confirmed", quality={"loss_increase": 0.25, "tokens_per_second": 12.5}
            )
    detail = call(staged, "GET", path)
    assert detail["progress"]["total"] == {
        "offered": len(first),
        "confirmed": len(first),
        "reverted": 0,
        "failed": 0,
        "declined": 0,
    }
    assert detail["progress"]["quality"]["loss_increase"] == {
        "mean": 0.25,
        "devices": len(first),
        "standard_error": 0.0,
    }
    while detail["progress"]["rollout"]["state"] == "running":
        seen = detail["progress"]["rollout"]["revision"]
        call(staged, "POST", f"{path}/advance", {"revision": seen, "reason": "looks good"})
        detail = call(staged, "GET", path)
    assert detail["changes"][-1]["reason"] == "looks good"
    assert {staged.check(staged.enrol("late"), **has(staged, 3)).json()["version"]} == {4}


def test_reverts_halt_it_and_the_offer_is_taken_back(staged: Service) -> None:
    devices = [staged.enrol(f"device-{number}") for number in range(16)]
    rollout_id = draft_of(staged)["rollout_id"]
    call(staged, "POST", f"rollouts/{rollout_id}/start", {})
    asked = [(device, staged.check(device, **has(staged, 3))) for device in devices]
    chosen = [(device, answer.json()) for device, answer in asked if answer.status_code == 200]
    report(staged, *chosen[0], "reverted", reason="answers nothing")
    detail = call(staged, "GET", f"rollouts/{rollout_id}")
    assert detail["progress"]["rollout"]["state"] == "halted"
    assert detail["failures"] == [{"outcome": "reverted", "reason": "answers nothing", "reports": 1}]
    assert {staged.check(device, **has(staged, 3)).status_code for device in devices} == {204}
    refused = call(staged, "POST", f"rollouts/{rollout_id}/resume", {}, status=409)
    assert "A halt is for good" in refused["detail"]


def test_declines_are_told_apart_and_halt_nothing(staged: Service) -> None:
    devices = [staged.enrol(f"device-{number}") for number in range(16)]
    rollout_id = draft_of(staged)["rollout_id"]
    call(staged, "POST", f"rollouts/{rollout_id}/start", {})
    asked = [(device, staged.check(device, **has(staged, 3))) for device in devices]
    chosen = [(device, answer.json()) for device, answer in asked if answer.status_code == 200]
    for device, offer in chosen:
        report(staged, device, offer, "declined", reason="ε above 2")
        report(staged, device, offer, "declined", reason="ε above 2")  # a replay
    detail = call(staged, "GET", f"rollouts/{rollout_id}")
    assert detail["progress"]["rollout"]["state"] == "running"
    assert (detail["progress"]["total"]["declined"], detail["progress"]["total"]["failed"]) == (len(chosen), 0)
    assert detail["failures"] == []
    assert detail["declines"] == [{"outcome": "declined", "reason": "ε above 2", "reports": len(chosen)}]
    # The offer stands: the owner may raise the limit.
    device, offer = chosen[0]
    assert staged.check(device, **has(staged, 3)).json()["offer_id"] == offer["offer_id"]
    report(staged, device, offer, "confirmed")
    total = call(staged, "GET", f"rollouts/{rollout_id}")["progress"]["total"]
    assert (total["declined"], total["confirmed"]) == (len(chosen) - 1, 1)
    # A decline that comes late, after all, changes nothing that is over.
    device, offer = chosen[1]
    report(staged, device, offer, "confirmed")
    report(staged, device, offer, "declined", reason="late")
    assert staged.check(device, **has(staged, 3)).json()["offer_id"] != offer["offer_id"]
    assert call(staged, "GET", f"rollouts/{rollout_id}")["progress"]["total"]["confirmed"] == 2


def test_who_looked_at_an_older_revision_is_told(staged: Service) -> None:
    draft = draft_of(staged)
    path = f"rollouts/{draft['rollout_id']}"
    call(staged, "POST", f"{path}/start", {"revision": 1})
    told = call(staged, "POST", f"{path}/halt", {"revision": 1}, status=409)
    assert "changed since you looked" in told["detail"]


def test_an_operator_makes_a_rollout_for_testers(api: Service) -> None:
    body = {"model": MODEL, "version": 3, "plan": {"channel": "beta", "groups": ["pilot"]}, "is_started": True}
    made = call(api, "POST", "rollouts", body, status=201)
    assert (made["state"], made["plan"]["channel"], made["plan"]["phases"]) == ("running", "beta", [100.0])
    assert call(api, "POST", "rollouts", {"model": MODEL, "version": 9}, status=404)
    assert "lamella versions" in call(api, "POST", "rollouts", {"model": "none", "version": 1}, status=404)["detail"]


def test_a_device_is_explained_and_moved_by_hand(staged: Service) -> None:
    device = staged.enrol("kitchen")
    staged.check(device, **has(staged, 3))
    path = f"devices/{id_of(device)}"
    told = call(staged, "GET", f"{path}/explanation")
    rollout_id = draft_of(staged)["rollout_id"]
    assert told["explanation"]["reasons"] == [
        f"Not v4: rollout {rollout_id} has not been started.",
        "It keeps v3.",
    ]
    policy = call(staged, "PATCH", f"{path}/policy", {"is_opted_out": True, "tags": ["a"], "group": "pilot"})
    assert (policy["is_opted_out"], policy["tags"], policy["group"]) == (True, ["a"], "pilot")
    policy = call(staged, "PATCH", f"{path}/policy", {"forced_version": 4})
    assert (policy["is_opted_out"], policy["forced_version"]) == (True, 4)
    assert staged.check(device, **has(staged, 3)).json()["version"] == 4
    told = call(staged, "GET", f"{path}/explanation")
    assert told["explanation"]["reasons"] == ["An operator forced v4 on it."]
    assert told["explanation"]["is_move"] is True
    assert "released" in call(staged, "PATCH", f"{path}/policy", {"forced_version": 9}, status=409)["detail"]


def test_a_withdrawn_release_is_offered_and_served_no_more(api: Service) -> None:
    device, fresh = api.enrol("kitchen"), api.enrol("fresh")
    package = api.check(device, **has(api, 2)).json()["package"]["path"]
    withdrawn = call(api, "POST", f"models/{MODEL}/versions/3/withdraw", {"reason": "wrong language"})
    assert (withdrawn["version"]["state"], withdrawn["version"]["reason"]) == ("withdrawn", "wrong language")
    assert api.check(device, **has(api, 2)).status_code == 204
    assert api.check(fresh).json()["version"] == 2
    assert api.client.get(f"/v1/targets/{package}", headers=device).status_code == 404
    # Whoever runs it keeps it, damage or not: there is nothing newer.
    assert api.check(device, **has(api, 3)).status_code == 204
    told = call(api, "GET", f"devices/{id_of(device)}/explanation")["explanation"]
    assert told["reasons"][0] == "v3, which it runs, was withdrawn: wrong language."
    api.home.candidate(5, parent=2)
    api.home.publish(4)
    assert api.check(device, **has(api, 3)).json()["package"]["source_version"] == 3


def test_a_candidate_below_a_withdrawn_release_is_refused_before_any_work(api: Service) -> None:
    api.home.candidate(4, parent=2)
    api.home.candidate(5, parent=2)
    api.home.publish(5)
    api.home.registry.withdraw(MODEL, 5, reason="wrong")
    with pytest.raises(ConflictError, match="versions never go down"):
        api.home.publish(4)
    assert 4 not in api.home.metadata.signed_versions(MODEL)


def test_the_contents_of_an_older_release_come_back_under_a_new_number(api: Service) -> None:
    home = api.home
    device = api.enrol("kitchen")
    api.check(device, **has(api, 3))
    restored = restore(home.registry, model=MODEL, version=2)
    assert restore(home.registry, model=MODEL, version=2) == restored  # cut off before it was released
    publish(
        home.registry,
        home.artifacts,
        home.metadata,
        model=MODEL,
        version=restored.number,
        gate=restored.gate,
        work=home.settings.work_dir,
    )
    assert (restored.number, restored.manifest.tree_hash) == (4, api.hash_of(2))
    assert restored.manifest.facts["restored_from"] == 2
    offer = api.check(device, **has(api, 3)).json()
    assert (offer["version"], offer["tree_hash"], offer["package"]["source_version"]) == (4, api.hash_of(2), 3)


def test_a_damaged_version_of_a_halted_rollout_is_repaired_with_itself(staged: Service) -> None:
    device = staged.enrol("kitchen")
    rollout_id = draft_of(staged)["rollout_id"]
    call(staged, "POST", f"rollouts/{rollout_id}/halt", {"reason": "second thoughts"})
    offer = staged.check(device, installed_version=4, installed_hash="0" * 64).json()
    assert (offer["version"], offer["package"]["source_version"]) == (4, None)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "rollouts", {"model": MODEL, "version": 3, "plan": {"phases": [50]}}),
        (
            "POST",
            "rollouts",
            {"model": MODEL, "version": 3, "plan": {"phases": [float(number) for number in range(40)]}},
        ),
        ("POST", "rollouts", {"model": MODEL, "version": 3, "plan": {"window": "now"}}),
        ("POST", "rollouts", {"model": MODEL, "version": 3, "plan": {"not_before": "2026-01-01T00:00:00"}}),
        ("POST", "rollouts", {"model": MODEL, "version": 3, "plan": {"groups": ["\x00"]}}),
        ("POST", "rollouts", {"model": MODEL, "version": "3"}),
        ("POST", "rollouts/1/explode", {}),
        ("POST", "rollouts/99999999999/halt", {}),
        ("POST", "rollouts/1/halt", {"reason": "x" * 501}),
        ("GET", "rollouts?state=bored", None),
        ("GET", "rollouts?after=0", None),
        ("PATCH", f"devices/{'0' * 32}/policy", {"colour": "blue"}),
        ("PATCH", f"devices/{'0' * 32}/policy", {"channel": None}),
        ("PATCH", f"devices/{'0' * 32}/policy", {"group": "../x"}),
        ("POST", f"models/{MODEL}/versions/3/withdraw", {"reason": ""}),
    ],
)
def test_what_does_not_fit_is_refused(shared_api: Service, method: str, path: str, body: object) -> None:
    answer = shared_api.client.request(method, f"/v1/operator/{path}", json=body, headers=shared_api.operator)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_what_is_not_there_is_missing(shared_api: Service) -> None:
    for method, path in (
        ("GET", "rollouts/99"),
        ("POST", "rollouts/99/halt"),
        ("GET", f"devices/{'0' * 32}/explanation"),
        ("PATCH", f"devices/{'0' * 32}/policy"),
        ("GET", "models/none/channels"),
    ):
        body = None if method == "GET" else {}
        assert call(shared_api, method, path, body, status=404)["detail"]


def test_what_a_channel_still_offers_stays_signed_however_many_releases_others_get(tmp_path: Path) -> None:
    home = open_home(tmp_path, signed_versions=2)
    home.base()
    home.publish(1, loss=None)
    beta = Launch(plan=parse_plan(channel="beta"))
    for number in (2, 3, 4, 5):
        home.candidate(number, parent=1)
        publish(
            home.registry,
            home.artifacts,
            home.metadata,
            model=MODEL,
            version=number,
            gate=Gate(margin=0.1).judge(candidate_loss=2.0, parent_loss=2.0),
            work=home.settings.work_dir,
            launch=beta,
        )
    assert home.registry.versions_offered(MODEL) == {1, 5}
    assert home.metadata.signed_versions(MODEL) == {1, 4, 5}
    home.registry.close()
