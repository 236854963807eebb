"""The console without a browser: sessions, forms, roles, headers, and pages with nothing in them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from simulators.console_fleet import NEXT_RUN, PASSWORD, RUN, seed_console
from simulators.hawkbit_client import Controller
from simulators.server_home import MODEL, make_event, make_user_event
from simulators.update_api import Service, TestClient

from privacy.budget import PrivacyBudget
from privacy.user_level import user_epsilon
from server.registry import Role

PAGES = ("", "releases", f"releases/{MODEL}/4", "rollouts", "rollouts/4", "devices", "enrolment", "runs")
PAGES += (f"runs/{RUN}", "audit", "operators", "operators/ada", f"runs/{NEXT_RUN}/release")


class Page(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.attributes: set[str] = set()
        self.fields: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.attributes |= set(found)
        self.loaded += [found[name] or "" for name in ("src", "href") if tag in {"link", "img"} and name in found]
        if tag == "input" and found.get("type") == "hidden":
            self.fields[found["name"] or ""] = found.get("value") or ""


def login(client: TestClient, name: str = "ada", password: str = PASSWORD, **fields: str) -> object:
    return client.post("/console/login", data={"name": name, "password": password, **fields}, follow_redirects=False)


def csrf(client: TestClient) -> str:
    return Page(client.get("/console/").text).fields["csrf"]


@pytest.fixture(scope="module")
def seeded(three_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seed_console(three_versions, tmp_path_factory.mktemp("console") / "seeded")


@pytest.fixture
def console(seeded: Path, tmp_path: Path) -> Service:
    import shutil

    shutil.copytree(seeded, tmp_path / "service")
    with Service(tmp_path / "service") as service:
        yield service


def test_every_page_needs_a_login_and_comes_back_after_it(console: Service) -> None:
    for path in PAGES:
        answer = console.client.get(f"/console/{path}", follow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/console/login?next=/console/{path}"
    answer = login(console.client, next="/console/audit")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/audit")


@pytest.mark.parametrize(
    "after", ["https://evil.example/", "//evil.example", "/console/../../x", "/console\\x", "/v1/operator/devices", ""]
)
def test_a_login_leads_to_our_own_pages_only(console: Service, after: str) -> None:
    assert login(console.client, next=after).headers["location"] == "/console/"


def test_every_page_shows_itself_and_loads_only_our_two_files(console: Service) -> None:
    login(console.client)
    device = console.app.state.services.registry.troubles(limit=1)[0].device_id
    for path in (*PAGES, f"devices/{device}"):
        answer = console.client.get(f"/console/{path}")
        assert answer.status_code == 200, path
        page = Page(answer.text)
        assert not {"script", "iframe", "style", "object"} & set(page.tags)
        assert "style" not in page.attributes
        assert not [name for name in page.attributes if name.startswith("on")]
        assert {link.partition("?")[0] for link in page.loaded} == {
            "/console/static/console.css",
            "/console/static/icon.svg",
        }
        assert page.tags.count("h1") == 1
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        for link in page.loaded:
            assert console.client.get(link).status_code == 200


def test_pages_tell_what_is_in_the_registry(console: Service) -> None:
    login(console.client)
    fleet = console.client.get("/console/").text
    assert "self-test: logits differ by 0.31" in fleet
    assert '<polygon class="area' in fleet
    release = console.client.get(f"/console/releases/{MODEL}/4").text
    assert "ε 3.13" in release
    assert "of 8 allowed" in release
    assert "passed" in release
    rejected = console.client.get(f"/console/releases/{MODEL}/5").text
    assert "evaluation gate refused" in rejected
    run = console.client.get(f"/console/runs/{RUN}").text
    assert run.count("<polyline") == 2
    assert "limit 8" in run
    assert "the update&#39;s norm is 812.0" in run
    assert "version.release" in console.client.get("/console/audit").text
    assert "nightly release" in console.client.get("/console/operators").text


def test_a_run_shows_what_it_cost_users_beside_what_it_cost_examples(console: Service) -> None:
    registry = console.app.state.services.registry
    base = registry.run(RUN).base_hash
    registry.set_user_budget(MODEL, PrivacyBudget(target_epsilon=12.0, target_delta=1e-6))
    recipe = {"model": MODEL, "target-epsilon": 8.0, "target-delta": 1e-5}
    registry.create_run("per-user", model=MODEL, recipe=recipe, base_version=1, base_hash=base, parent_version=1)
    registry.record_round(
        "per-user",
        1,
        status="released",
        replies=2,
        failures={},
        held_out_loss=2.0,
        events=[make_event("per-user", 1), make_user_event("per-user", 1, "a", "b")],
        artifacts={},
        facts={},
    )
    login(console.client)
    page = console.client.get("/console/runs/per-user").text
    spent = user_epsilon([make_user_event("per-user", 1, "a")], target_delta=1e-6)
    assert f"{spent:.2f} <small>of 12</small>" in page
    assert "ε per user spent after each round" in page
    assert f"charged the users of {MODEL} ε {spent:.2f} of 12 by now" in page
    assert "ε per user spent" not in console.client.get("/console/runs/cut-short").text


def test_a_wrong_password_is_refused_and_written_down_without_what_was_typed(console: Service) -> None:
    answer = login(console.client, password="not this one")
    assert answer.status_code == 401
    assert "do not belong together" in answer.text
    assert login(console.client, name="my password by mistake").status_code == 401
    entries = console.app.state.services.registry.audit_log(limit=2)
    assert [(entry.actor, entry.action) for entry in entries] == [
        ("(unknown name)", "console.login"),
        ("ada", "console.login"),
    ]
    assert "not this one" not in str(entries)
    assert "by mistake" not in str(entries)
    assert "lamella" not in console.client.cookies
    assert login(console.client, name="ci", password="").status_code == 401


def test_too_many_wrong_passwords_have_to_wait(console: Service) -> None:
    statuses = [login(console.client, password="wrong").status_code for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    answer = login(console.client)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 10
    assert "Too many failed logins from here. Try again in" in answer.text


def test_logins_that_succeed_do_not_count(console: Service) -> None:
    assert {login(console.client).status_code for _ in range(15)} == {303}


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(console: Service) -> None:
    cookie = login(console.client).headers["set-cookie"]
    assert cookie.startswith("lamella=")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/" in cookie


def test_over_https_the_cookie_is_bound_to_this_host(seeded: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(seeded, tmp_path / "service")
    with Service(tmp_path / "service", public_url="https://updates.example.org") as service:
        answer = login(service.client)
        assert answer.headers["set-cookie"].startswith("__Host-lamella=")
        assert "Secure" in answer.headers["set-cookie"]
        assert "max-age" in answer.headers["strict-transport-security"]


def test_logging_out_ends_the_session_on_the_server_too(console: Service) -> None:
    login(console.client)
    cookie = console.client.cookies["lamella"]
    answer = console.client.post("/console/logout", data={"csrf": csrf(console.client)}, follow_redirects=False)
    assert answer.headers["location"] == "/console/login"
    console.client.cookies.set("lamella", cookie)
    assert console.client.get("/console/", follow_redirects=False).status_code == 303


def device_id(console: Service) -> str:
    return next(d.device_id for d in console.app.state.services.registry.devices() if d.revoked_at is None)


def test_a_form_without_the_sessions_own_proof_does_nothing(console: Service) -> None:
    login(console.client, name="paul")
    foreign = csrf(console.client)
    console.client.cookies.clear()
    login(console.client)
    device, client = device_id(console), console.client
    path = f"/console/devices/{device}/revoke"
    right = {"csrf": csrf(client)}
    assert client.post(path, data={"csrf": ""}).status_code == 403
    assert client.post(path, data={"csrf": foreign}).status_code == 403
    assert client.post(path, data=right, headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.post(path, data=right, headers={"Origin": "null"}).status_code == 403
    assert client.post(path, data=right, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post(path, json=right).status_code == 422
    assert client.get(path, follow_redirects=False).status_code in {404, 405}
    assert console.app.state.services.registry.device(device).revoked_at is None


def test_another_site_cannot_log_somebody_in(console: Service) -> None:
    answer = console.client.post(
        "/console/login", data={"name": "ada", "password": PASSWORD}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status_code == 403


def test_a_device_is_revoked_and_the_log_says_by_whom(console: Service) -> None:
    login(console.client, name="paul")
    device = device_id(console)
    answer = console.client.post(f"/console/devices/{device}/revoke", data={"csrf": csrf(console.client)})
    assert "It is refused" in answer.text
    registry = console.app.state.services.registry
    assert registry.device(device).revoked_at is not None
    (entry,) = registry.audit_log(limit=1)
    assert (entry.actor, entry.via, entry.action, entry.subject, entry.outcome) == (
        "paul",
        "console",
        "device.revoke",
        device,
        "done",
    )


def test_a_device_that_speaks_hawkbits_protocol_shows_its_action(console: Service) -> None:
    other = device_id(console)
    gate = Controller.with_token(console)
    gate.service.client.put(f"{gate.root}/configData", json={"data": {"hw": "rev-b"}}, headers=gate.headers)
    action = gate.deployment()["id"]
    login(console.client)
    page = f"/console/devices/{gate.device_id}"
    for sentence in ("hawkBit's protocol", gate.name, "rev-b", f"Action {action}", '<span class="state open">'):
        assert sentence in console.client.get(page).text
    gate.feedback(action, "closed", "success")
    assert '<span class="state closed">' in console.client.get(page).text
    assert "hawkBit" not in console.client.get(f"/console/devices/{other}").text


def test_a_viewer_looks_and_changes_nothing(console: Service) -> None:
    login(console.client, name="vera")
    device, proof = device_id(console), {"csrf": csrf(console.client)}
    assert "Revoke this device" not in console.client.get(f"/console/devices/{device}").text
    assert "Operators" not in console.client.get("/console/").text
    assert console.client.get("/console/operators").status_code == 403
    for path in (f"devices/{device}/revoke", "enrolment", "enrolment/1/revoke", f"operators/tokens/{'0' * 16}/revoke"):
        answer = console.client.post(f"/console/{path}", data={**proof, "model": MODEL})
        assert answer.status_code == 403, path
        assert "needs the role" in answer.text
        assert console.app.state.services.registry.audit_log(limit=1)[0].outcome.startswith("refused")
    assert console.app.state.services.registry.device(device).revoked_at is None


def test_an_enrolment_file_is_downloaded_and_works(console: Service) -> None:
    login(console.client, name="paul")
    fields = {"csrf": csrf(console.client), "model": MODEL, "uses": "2"}
    answer = console.client.post("/console/enrolment", data=fields)
    assert answer.headers["content-disposition"] == 'attachment; filename="enrolment.json"'
    assert answer.headers["cache-control"] == "no-store"
    token = json.loads(answer.text)["token"]
    for status in (201, 201, 410):
        assert console.client.post("/v1/devices", json={"token": token, "name": "new"}).status_code == status
    listed = console.client.get("/console/enrolment").text
    assert "2 of 2" in listed
    assert token not in listed
    for wrong in ("0", "x", "-1", "1e3", "999999999"):
        assert console.client.post("/console/enrolment", data={**fields, "uses": wrong}).status_code == 422
    assert console.client.post("/console/enrolment", data={**fields, "model": "none"}).status_code == 404


def test_admins_revoke_tokens(console: Service) -> None:
    login(console.client)
    registry = console.app.state.services.registry
    (token,) = registry.operator_tokens()
    console.client.post(f"/console/operators/tokens/{token.token_id}/revoke", data={"csrf": csrf(console.client)})
    assert registry.operator_tokens()[0].revoked_at is not None
    console.client.post("/console/enrolment/1/revoke", data={"csrf": csrf(console.client)})
    assert registry.enrolment_tokens()[0].revoked_at is not None


def test_errors_are_pages(console: Service) -> None:
    login(console.client)
    for path, status in (
        ("none", 404),
        ("devices/x", 422),
        (f"devices/{'0' * 32}", 404),
        ("releases?model=none", 404),
        ("releases/tiny/99", 404),
        ("runs/none", 404),
        ("devices?q=%00", 422),
        ("audit?before=0", 422),
        ("static/secret", 422),
    ):
        answer = console.client.get(f"/console/{path}")
        assert answer.status_code == status, path
        assert answer.headers["content-type"].startswith("text/html")
        assert 'role="alert"' in answer.text


def test_what_devices_and_people_named_is_text_not_html(console: Service) -> None:
    registry = console.app.state.services.registry
    token, _ = registry.create_enrolment_token(MODEL, valid_for=__import__("datetime").timedelta(hours=1))
    device, _ = registry.enrol(token, name="<script>alert(1)</script>")
    login(console.client)
    for path in ("devices", f"devices/{device.device_id}", "devices?q=%3Cscript%3E"):
        html = console.client.get(f"/console/{path}").text
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_devices_are_found_by_name_and_id(console: Service) -> None:
    login(console.client)
    device = console.app.state.services.registry.devices()[3]
    for words in (device.name.upper(), device.device_id[:8]):
        html = console.client.get("/console/devices", params={"q": words}).text
        assert set(re.findall(r"/console/devices/([0-9a-f]{32})", html)) == {device.device_id}
    assert "No device has" in console.client.get("/console/devices", params={"q": "%"}).text


def test_an_empty_service_says_which_command_fills_it(tmp_path: Path) -> None:
    with Service(tmp_path) as service:
        assert "lamella operators add NAME --role admin" in service.client.get("/console/login").text
        service.app.state.services.registry.add_operator("ada", role=Role.ADMIN, password=PASSWORD)
        login(service.client)
        for path, command in (
            ("", "lamella base import"),
            ("releases", "lamella base import"),
            ("devices", "lamella-device enroll"),
            ("enrolment", "lamella base import"),
            ("runs", "lamella train federated"),
            ("operators", "lamella operators token create"),
        ):
            assert command in service.client.get(f"/console/{path}").text, path


def test_an_expired_session_ends(console: Service) -> None:
    login(console.client)
    registry = console.app.state.services.registry
    registry.set_password("ada", "another horse battery")
    answer = console.client.post("/console/logout", data={"csrf": "x"}, follow_redirects=False)
    assert answer.headers["location"] == "/console/login"


def test_a_rollout_is_changed_by_who_may_and_sees_what_is_there(console: Service) -> None:
    registry = console.app.state.services.registry
    login(console.client, name="vera")
    page = Page(console.client.get("/console/rollouts/4").text)
    assert "button" in page.tags  # to log out; no form of the rollout's own
    assert "revision" not in page.fields
    refused = console.client.post("/console/rollouts/4/halt", data={"csrf": csrf(console.client), "revision": "1"})
    assert refused.status_code == 403
    login(console.client, name="paul")
    page = Page(console.client.get("/console/rollouts/4").text)
    for revision in ("", "x", "9" * 10):
        answer = console.client.post("/console/rollouts/4/pause", data={**page.fields, "revision": revision})
        assert answer.status_code == 422
    assert console.client.post("/console/rollouts/4/pause", data=page.fields).status_code == 200
    assert registry.rollout(4).state == "paused"
    # Who looked at an older state decides anew.
    assert console.client.post("/console/rollouts/4/halt", data=page.fields).status_code == 409
    assert console.client.post("/console/rollouts/4/burn", data=page.fields).status_code == 422
    assert console.client.get("/console/rollouts/99").status_code == 404
    entries = [(entry.actor, entry.action) for entry in registry.audit_log(limit=9)]
    assert ("paul", "rollout.pause") in entries
    assert ("vera", "rollout.halt") in entries


def test_a_version_is_withdrawn_with_a_reason(console: Service) -> None:
    login(console.client, name="paul")
    path, token = f"/console/releases/{MODEL}/4/withdraw", csrf(console.client)
    assert console.client.post(path, data={"csrf": token, "reason": " "}).status_code == 422
    answer = console.client.post(path, data={"csrf": token, "reason": "wrong <language>"})
    assert answer.status_code == 200
    assert "wrong &lt;language&gt;" in answer.text
    assert "Withdraw v4" not in answer.text
    assert console.app.state.services.registry.rollout(4).state == "halted"


def test_a_version_states_what_each_unit_cost_and_what_the_audit_found(console: Service) -> None:
    login(console.client)
    both = console.client.get(f"/console/releases/{MODEL}/6").text
    assert "ε 3.30" in both
    assert "for each example, of 8 allowed" in both
    assert "ε 6.10" in both
    assert "for each user" in both
    assert f'href="/console/runs/{NEXT_RUN}#audit"' in both
    assert "clipping-example" in both
    run = console.client.get(f"/console/runs/{NEXT_RUN}").text
    assert 'id="audit"' in run
    assert "inconclusive" in run
    assert "not caught" in run
    assert "a &lt;tenth&gt; of the noise is missing" in run
    assert "lamella privacy audit cut-short" in console.client.get("/console/runs/cut-short").text


def test_a_version_shows_its_signed_statement_and_says_when_it_does_not_verify(console: Service) -> None:
    login(console.client)
    page = f"/console/releases/{MODEL}/4"
    html = console.client.get(page).text
    assert "the signature holds" in html
    assert "within budget" in html
    services = console.app.state.services
    signed = services.registry.statement(MODEL, 4)
    assert signed.keyid[:12] in html
    kept = next(path for path in console.home.settings.home.rglob(f"*{signed.sha256}*") if path.is_file())
    raw = kept.read_bytes()
    kept.chmod(0o600)
    kept.write_bytes(raw.replace(b'"sig"', b'"gis"'))
    damaged = console.client.get(page)
    assert damaged.status_code == 200
    assert "the signature holds" not in damaged.text
    assert 'role="alert"' in damaged.text
    kept.unlink()
    assert "lamella doctor" in console.client.get(page).text
    assert "Signed privacy statement" not in console.client.get(f"/console/releases/{MODEL}/6").text
