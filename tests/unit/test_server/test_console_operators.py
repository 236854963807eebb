"""Operators' accounts and tokens in the console: made, shown once, ended; and who may not."""

from __future__ import annotations

import re
import shutil
from html import unescape
from typing import TYPE_CHECKING

import pytest
from simulators.console_fleet import PASSWORD, seed_console
from simulators.update_api import Service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from httpx2 import Response

NEW = "another horse battery"


@pytest.fixture(scope="module")
def seeded(three_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seed_console(three_versions, tmp_path_factory.mktemp("operators") / "seeded")


@pytest.fixture(scope="module")
def unchanged(seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """For tests after which everything is as before."""
    folder = tmp_path_factory.mktemp("unchanged") / "service"
    shutil.copytree(seeded, folder)
    with Service(folder) as service:
        login(service, "ada")
        yield service


@pytest.fixture
def console(seeded: Path, tmp_path: Path) -> Iterator[Service]:
    shutil.copytree(seeded, tmp_path / "service")
    with Service(tmp_path / "service") as service:
        login(service, "ada")
        yield service


def login(console: Service, name: str, password: str = PASSWORD) -> Response:
    console.client.cookies.clear()
    return console.client.post("/console/login", data={"name": name, "password": password}, follow_redirects=False)


def send(console: Service, path: str, **fields: str) -> Response:
    """Send a form as the page would: with the session's proof, and with the operator's own password."""
    found = re.search(r'name="csrf" value="([^"]+)"', console.client.get("/console/").text)
    assert found
    form = {"csrf": found[1], "own_password": PASSWORD} | fields
    return console.client.post(f"/console/{path}", data=form)


def entries(console: Service, count: int) -> list[tuple[str, str, str, str, str]]:
    log = console.app.state.services.registry.audit_log(limit=count)
    return [(entry.actor, entry.via, entry.action, entry.subject, entry.outcome) for entry in log]


def secret_on(answer: Response) -> str:
    found = re.search(r'aria-label="The token">([^<]+)<', answer.text)
    assert found
    return unescape(found[1])


def test_an_account_is_made_and_can_log_in(console: Service) -> None:
    answer = send(console, "operators", name="grace", role="publisher", password=NEW, password_again=NEW)
    assert answer.url.path == "/console/operators/grace"
    assert entries(console, 1) == [("ada", "console", "operator.add", "grace (publisher)", "done")]
    assert NEW not in answer.text
    assert login(console, "grace", NEW).status_code == 303
    assert "grace</strong> · publisher" in console.client.get("/console/").text


def test_a_programs_account_has_no_password_and_gets_a_token_that_is_shown_once(console: Service) -> None:
    send(console, "operators", name="nightly", role="viewer", is_program="on")
    answer = send(console, "operators/nightly/tokens", label="<metrics>", days="30")
    token = secret_on(answer)
    assert answer.headers["cache-control"] == "no-store"
    assert entries(console, 1) == [("ada", "console", "token.create", "nightly: <metrics>", "done")]
    header = {"Authorization": f"Bearer {token}"}
    who = console.client.get("/v1/operator/whoami", headers=header)
    assert who.json() == {"name": "nightly", "role": "viewer"}
    listed = console.client.get("/console/operators/nightly").text
    assert "&lt;metrics&gt;" in listed
    assert token[:16] in listed
    assert token[17:] not in listed
    assert token[17:] not in console.client.get("/console/audit").text
    send(console, f"operators/tokens/{token[:16]}/revoke")
    assert console.client.get("/v1/operator/whoami", headers=header).status_code == 401
    assert login(console, "nightly", "").status_code == 401


def test_a_new_password_ends_the_sessions_of_the_old_one(console: Service) -> None:
    login(console, "paul")
    pauls = console.client.cookies["lamella"]
    login(console, "ada")
    assert send(console, "operators/paul/password", password=NEW, password_again=NEW).status_code == 200
    assert entries(console, 1) == [("ada", "console", "operator.passwd", "paul", "done")]
    console.client.cookies.clear()
    console.client.cookies.set("lamella", pauls)
    assert console.client.get("/console/", follow_redirects=False).status_code == 303
    assert login(console, "paul").status_code == 401
    assert login(console, "paul", NEW).status_code == 303


def test_a_closed_account_is_out_and_its_name_stays_taken(console: Service) -> None:
    token = secret_on(send(console, "operators/paul/tokens", label="ci", days="1"))
    assert "Closed" in send(console, "operators/paul/remove").text
    assert entries(console, 1) == [("ada", "console", "operator.remove", "paul", "done")]
    header = {"Authorization": f"Bearer {token}"}
    assert console.client.get("/v1/operator/whoami", headers=header).status_code == 401
    assert "New API token" not in console.client.get("/console/operators/paul").text
    assert send(console, "operators/paul/tokens", label="ci", days="1").status_code == 404
    answer = send(console, "operators", name="paul", role="admin", password=NEW, password_again=NEW)
    assert answer.status_code == 409
    assert login(console, "paul").status_code == 401


def test_nobody_closes_their_own_account(console: Service) -> None:
    assert "Close this account" not in console.client.get("/console/operators/ada").text
    assert send(console, "operators/ada/remove").status_code == 409
    assert login(console, "ada").status_code == 303


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("operators", {"name": "eve", "role": "admin", "password": NEW, "password_again": NEW}),
        ("operators/ci/tokens", {"label": "back door", "days": "3650"}),
        ("operators/paul/password", {"password": NEW, "password_again": NEW}),
    ],
)
def test_an_open_session_alone_gives_nobody_access_for_long(
    console: Service, path: str, fields: dict[str, str]
) -> None:
    for wrong in ("", NEW):
        answer = send(console, path, own_password=wrong, **fields)
        assert answer.status_code == 403
        assert "not the password of ada" in answer.text
    registry = console.app.state.services.registry
    assert {operator.name for operator in registry.operators()} == {"ada", "ci", "paul", "vera"}
    assert len(registry.operator_tokens()) == 1
    assert entries(console, 1)[0][4].startswith("failed: That is not the password")
    assert login(console, "paul").status_code == 303


def test_guessing_ones_own_password_has_to_wait(console: Service) -> None:
    fields = {"label": "ci", "days": "1", "own_password": "wrong"}
    statuses = [send(console, "operators/ci/tokens", **fields).status_code for _ in range(11)]
    assert statuses == [403] * 10 + [429]
    assert send(console, "operators/ci/tokens", label="ci", days="1").status_code == 429


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        ("operators", {"name": "Grace", "role": "admin", "password": NEW, "password_again": NEW}, "no operator"),
        ("operators", {"name": "grace", "role": "king", "password": NEW, "password_again": NEW}, "Choose a role"),
        ("operators", {"name": "grace", "role": "admin", "password": NEW, "password_again": "x"}, "not the same"),
        ("operators", {"name": "grace", "role": "admin", "password": "a", "password_again": "a"}, "10 to 512"),
        ("operators", {"name": "grace", "role": "admin"}, "10 to 512"),
        (
            "operators",
            {"name": "grace", "role": "admin", "is_program": "on", "password": NEW, "password_again": NEW},
            "has no password",
        ),
        ("operators/ci/tokens", {"label": " ", "days": "90"}, "label"),
        ("operators/ci/tokens", {"label": "x" * 65, "days": "90"}, "label"),
        ("operators/ci/tokens", {"label": "ci", "days": "0"}, "1 to 3650 days"),
        ("operators/ci/tokens", {"label": "ci", "days": "٣"}, "1 to 3650 days"),
        ("operators/ci/tokens", {"label": "ci", "days": "9" * 400}, "1 to 3650 days"),
        ("operators/paul/password", {"password": "short", "password_again": "short"}, "10 to 512"),
    ],
)
def test_what_does_not_fit_is_told_and_changes_nothing(
    unchanged: Service, path: str, fields: dict[str, str], says: str
) -> None:
    answer = send(unchanged, path, **fields)
    assert answer.status_code == 422
    assert says in unescape(answer.text)
    registry = unchanged.app.state.services.registry
    assert {operator.name for operator in registry.operators()} == {"ada", "ci", "paul", "vera"}
    assert len(registry.operator_tokens()) == 1


@pytest.mark.parametrize("name", ["vera", "paul"])
def test_only_admins_may(console: Service, name: str) -> None:
    login(console, name)
    assert console.client.get("/console/operators/ada").status_code == 403
    for path, action in (
        ("operators", "operator.add"),
        ("operators/ci/tokens", "token.create"),
        ("operators/ci/password", "operator.passwd"),
        ("operators/ci/remove", "operator.remove"),
    ):
        fields = {"name": "eve", "role": "admin", "label": "x", "days": "1"}
        assert send(console, path, password=NEW, password_again=NEW, **fields).status_code == 403, path
        assert entries(console, 1) == [(name, "console", action, "", "refused: needs admin")]
    registry = console.app.state.services.registry
    assert "eve" not in {operator.name for operator in registry.operators()}
    assert len(registry.operator_tokens()) == 1
    assert all(operator.removed_at is None for operator in registry.operators())


def test_an_account_that_is_not_there_is_told(unchanged: Service) -> None:
    assert unchanged.client.get("/console/operators/nobody").status_code == 404
    assert send(unchanged, "operators/nobody/remove").status_code == 404
    assert unchanged.client.get("/console/operators/No%20body").status_code == 422
