import json
import logging
import re
import shutil
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from simulators.server_home import Clock, init_trust, offline_keys
from simulators.update_api import Service, TestClient

from server.api import create_app
from server.api.middleware import Guard
from server.config import Settings
from server.errors import ConfigurationError


def operations(openapi: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_operation_is_documented_with_examples_and_errors(shared_api: Service) -> None:
    openapi = shared_api.client.get("/v1/openapi.json").json()
    names = [name for name, _ in operations(openapi)]
    assert len(names) == 39
    for name, operation in operations(openapi):
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["tags"], name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description"), (name, parameter["name"])
            assert "examples" in parameter or parameter["schema"].get("examples"), (name, parameter["name"])
        if body := operation.get("requestBody"):
            assert body["content"]["application/json"]["schema"]["examples"], name
        for status, answer in operation["responses"].items():
            is_bodiless = status in {"204", "304", "307", "416"}
            contents = answer.get("content", {})
            assert is_bodiless or all("example" in content for content in contents.values()), (name, status)
            assert is_bodiless or contents, (name, status)
            if int(status) >= 400 and not is_bodiless:
                assert list(contents) == ["application/problem+json"], (name, status)
        if not name.endswith("healthz"):
            assert any(int(status) >= 400 for status in operation["responses"]), name
    assert len({operation["operationId"] for _, operation in operations(openapi)}) == len(names)


def test_every_operation_but_the_open_ones_names_its_credential(shared_api: Service) -> None:
    openapi = shared_api.client.get("/v1/openapi.json").json()
    schemes = {name: [next(iter(entry)) for entry in op.get("security", [])] for name, op in operations(openapi)}
    is_open = {name for name, needed in schemes.items() if not needed}
    assert is_open == {"GET /v1/healthz", "GET /v1/readyz", "POST /v1/devices", "GET /v1/metadata/{name}"}
    for name, needed in schemes.items():
        if needed:
            assert needed == ["operator" if "/operator/" in name else "device"], name


def test_examples_fit_their_schemas(shared_api: Service) -> None:
    """Each JSON example of a successful answer has the fields that its schema requires."""
    openapi = shared_api.client.get("/v1/openapi.json").json()
    for name, operation in operations(openapi):
        for status, answer in operation["responses"].items():
            content = answer.get("content", {}).get("application/json", {})
            if "$ref" not in content.get("schema", {}) or int(status) >= 300:
                continue
            schema = openapi["components"]["schemas"][content["schema"]["$ref"].rsplit("/", 1)[-1]]
            missing = set(schema.get("required", [])) - set(content["example"])
            unknown = set(content["example"]) - set(schema["properties"])
            assert not missing | unknown, (name, missing, unknown)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_documentation_is_one_page_that_loads_nothing(shared_api: Service) -> None:
    answer = shared_api.client.get("/docs")
    page = _Page()
    page.feed(answer.text)
    assert page.links == ["/v1/openapi.json"]
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("h3") == 39
    assert "unsafe-inline" not in answer.headers["content-security-policy"]
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")


def test_every_answer_has_security_headers(shared_api: Service) -> None:
    for path in ("/v1/healthz", "/v1/none", "/v1/metadata/timestamp.json", "/docs", "/v1/operator/devices"):
        headers = shared_api.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "cache-control" in headers
        assert "strict-transport-security" not in headers


def test_over_https_browsers_are_told_to_stay_there(tmp_path: Path) -> None:
    with Service(tmp_path, public_url="https://updates.example.org") as api:
        assert "max-age" in api.client.get("/v1/healthz").headers["strict-transport-security"]


def test_health_is_told(shared_api: Service) -> None:
    assert shared_api.client.get("/v1/healthz").json() == {"status": "alive", "warnings": []}
    assert shared_api.client.get("/v1/readyz").json() == {"status": "ready", "warnings": []}


def test_a_service_whose_metadata_expired_is_not_ready(tmp_path: Path, clock: Clock) -> None:
    clock.time = datetime.now(UTC) - timedelta(days=366)
    settings = Settings(home=tmp_path / "home")
    init_trust(settings, offline_keys(tmp_path), now=clock)
    with Service(tmp_path) as api:
        answer = api.client.get("/v1/readyz")
        assert answer.status_code == 503
        assert "Try again later" in answer.json()["detail"]
        assert api.client.get("/v1/healthz").status_code == 200


def test_metadata_that_expires_soon_is_warned_of(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.time = datetime.now(UTC) - timedelta(days=340)
    settings = Settings(home=tmp_path / "home", releases_expiry_days=3650)
    init_trust(settings, offline_keys(tmp_path), now=clock)
    with caplog.at_level(logging.WARNING, "lamella.api"), Service(tmp_path) as api:
        answer = api.client.get("/v1/readyz")
    assert answer.status_code == 200
    warnings = answer.json()["warnings"]
    assert [text.split()[1] for text in warnings] == ["root", "targets", "packages"]
    assert all("lamella trust renew" in text for text in warnings)
    assert warnings[0] in caplog.text


def test_the_service_runs_without_any_offline_key(api: Service) -> None:
    shutil.rmtree(api.home.folder / "offline-keys")
    again = create_app(api.home.settings)
    assert again.state.services.metadata.refresh() is False
    assert {path.name.partition("-")[0] for path in (api.home.settings.home / "keys").iterdir()} == {
        "deltas",
        "snapshot",
        "timestamp",
    }
    again.state.services.registry.close()


def test_a_home_without_trust_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="lamella trust init"):
        create_app(Settings(home=tmp_path / "home"))
    (tmp_path / "old" / "keys").mkdir(parents=True)
    (tmp_path / "old" / "keys" / "root.pem").write_text("of the old layout")
    with pytest.raises(ConfigurationError, match="Start a new home"):
        create_app(Settings(home=tmp_path / "old"))


def test_a_service_without_its_database_is_not_ready(api: Service, caplog: pytest.LogCaptureFixture) -> None:
    for path in api.home.settings.home.glob("registry.sqlite*"):
        path.unlink()
    (api.home.settings.home / "registry.sqlite").mkdir()
    # Last: whoever looks beside the test would open the old file again.
    api.app.state.services.registry.close()
    with caplog.at_level(logging.ERROR, "lamella.api"):
        answer = api.client.get("/v1/readyz")
    assert answer.status_code == 503
    assert "sqlite" not in answer.text
    assert "unable to open" in caplog.text


def test_unknown_paths_and_methods_are_problems(shared_api: Service) -> None:
    for answer, status in (
        (shared_api.client.get("/none"), 404),
        (shared_api.client.delete("/v1/healthz"), 405),
    ):
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"


def test_an_unforeseen_error_shows_nothing_of_its_inside(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("the secret is hunter2")

    app.add_middleware(Guard, is_https=False)
    with caplog.at_level(logging.ERROR, "lamella.api"):
        answer = TestClient(app, raise_server_exceptions=False).get("/boom")
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    assert answer.json()["status"] == 500
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "hunter2" in caplog.text


def test_an_app_that_cannot_work_does_not_start(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    init_trust(settings, offline_keys(tmp_path))
    create_app(settings).state.services.registry.close()
    (settings.home / "operator.token").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod"):
        create_app(settings)


def test_the_metadata_is_renewed_while_the_app_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.app._MAX_REFRESH_S", 0.01)
    with Service(tmp_path) as api:
        calls = []
        metadata = api.app.state.services.metadata
        monkeypatch.setattr(type(metadata), "refresh", lambda self: calls.append(1))
        while len(calls) < 2:
            api.client.get("/v1/healthz")


def test_no_secret_is_in_the_openapi_document(shared_api: Service) -> None:
    text = json.dumps(shared_api.client.get("/v1/openapi.json").json())
    assert shared_api.operator["Authorization"].removeprefix("Bearer ") not in text
    assert not re.search(str(shared_api.home.settings.home), text)
