import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from simulators.server_home import MODEL
from simulators.service_process import running_services
from simulators.update_api import Service

from server.api import create_app
from server.api.logs import log_as_json
from server.config import Settings
from server.errors import ConfigurationError

TOKEN = "a-token-for-prometheus"
SCRAPE = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, metrics_token=TOKEN) as service:
        service.home.base()
        service.home.publish(1, loss=None)
        yield service


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged as JSON while a test runs."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = list(root.handlers), logging.getLogger("lamella").level
    log_as_json(stream)
    yield stream
    root.handlers[:] = handlers
    logging.getLogger("lamella").setLevel(level)


def numbers(service: Service) -> dict[str, float]:
    answer = service.client.get("/metrics", headers=SCRAPE)
    assert answer.status_code == 200
    samples = (line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_requests_are_counted_by_route_and_outcome(watched: Service) -> None:
    device = watched.enrol()
    offer = watched.check(device).json()
    report = {"offer_id": offer["offer_id"], "version": 1, "outcome": "confirmed", "bytes_downloaded": 1}
    watched.client.post("/v1/updates/report", json=report, headers=device)
    package = watched.client.get(f"/v1/targets/packages/{MODEL}/1/full.lmpkg", headers=device)
    found = numbers(watched)
    assert found['lamella_http_requests_total{method="POST",route="/v1/updates/check",status="200"}'] == 1
    assert found['lamella_http_requests_total{method="POST",route="/v1/devices",status="201"}'] == 1
    assert found['lamella_http_sent_bytes_total{route="/v1/targets/{path:path}"}'] == len(package.content)
    assert found['lamella_http_request_seconds_count{route="/v1/updates/check"}'] == 1
    assert found['lamella_update_outcomes_total{outcome="confirmed"}'] == 1
    assert found["lamella_metadata_expiry_timestamp_seconds"] > time.time()


def test_no_number_is_about_one_device(watched: Service) -> None:
    device = watched.enrol("kitchen")
    for number in range(5):
        watched.client.get(f"/v1/operator/devices/{number:032x}", headers=watched.operator)
        watched.client.get(f"/nothing/{number}")
        watched.client.request(f"ODD{number}", "/v1/healthz")
    after = numbers(watched)
    identity = device["Authorization"].removeprefix("Bearer ").partition(".")[0]
    assert not [name for name in after if identity in name or "kitchen" in name or "nothing/" in name or "ODD" in name]
    assert after['lamella_http_requests_total{method="GET",route="none",status="404"}'] == 5


def test_the_metrics_need_their_token(watched: Service, shared_api: Service) -> None:
    assert watched.client.get("/metrics").status_code == 401
    assert watched.client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert watched.client.get("/metrics", headers=watched.operator).status_code == 401
    assert shared_api.client.get("/metrics", headers=SCRAPE).status_code == 404
    with pytest.raises(ValueError, match="metrics_token"):
        Settings(metrics_token="short")


def test_every_answer_has_a_request_id(shared_api: Service) -> None:
    own = shared_api.client.get("/v1/healthz").headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}", own)
    assert shared_api.client.get("/v1/healthz").headers["x-request-id"] != own
    given = shared_api.client.get("/nothing", headers={"X-Request-ID": "from-the-proxy.1"})
    assert given.headers["x-request-id"] == "from-the-proxy.1"
    for forged in ('x" injected', "a" * 65, "short"):
        answer = shared_api.client.get("/v1/healthz", headers={"X-Request-ID": forged})
        assert answer.headers["x-request-id"] != forged


def test_a_line_of_json_tells_how_a_request_ended_and_no_secret(watched: Service, lines: io.StringIO) -> None:
    device = watched.enrol()
    watched.client.get(f"/v1/targets/manifests/{MODEL}/1.json", headers={**device, "X-Request-ID": "12345678"})
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    line = next(line for line in told if line.get("request_id") == "12345678")
    assert (line["level"], line["logger"], line["method"]) == ("info", "lamella.access", "GET")
    assert (line["route"], line["status"]) == ("/v1/targets/{path:path}", 200)
    assert line["ms"] > 0
    assert line["bytes"] > 0
    for secret in (device["Authorization"].removeprefix("Bearer "), watched.operator["Authorization"].split()[1]):
        assert secret not in lines.getvalue()
        assert secret.partition(".")[0] not in lines.getvalue()


def test_an_error_is_logged_under_the_requests_id(watched: Service, lines: io.StringIO) -> None:
    package = watched.home.registry.packages(MODEL, 1)[0]
    watched.home.artifacts.path(package.sha256).unlink()
    answer = watched.client.get(f"/v1/targets/{package.path}", headers=watched.enrol())
    assert answer.status_code == 503
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    error = next(line for line in told if line["level"] == "error")
    assert error["request_id"] == answer.headers["x-request-id"]
    assert package.sha256 in error["message"]


def test_traces_without_their_packages_are_refused_with_what_to_install(
    api: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lamella\[otel\]'"):
        create_app(api.home.settings.model_copy(update={"traces": True}))


@pytest.mark.slow
def test_the_processes_of_one_machine_count_together(tmp_path: Path) -> None:
    """Numbers of a process that ended are still there."""
    script = "from server.api.metrics import Metrics; Metrics().count_outcome('confirmed')"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    read = (
        "from prometheus_client import CollectorRegistry, generate_latest;"
        "from prometheus_client.multiprocess import MultiProcessCollector;"
        "c = CollectorRegistry(); MultiProcessCollector(c); print(generate_latest(c).decode())"
    )
    told = subprocess.run([sys.executable, "-c", read], env=environment, check=True, capture_output=True, text=True)
    assert 'lamella_update_outcomes_total{outcome="confirmed"} 2.0' in told.stdout


class Collector(BaseHTTPRequestHandler):
    """Takes what an OTLP exporter sends."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Silence."""


@pytest.mark.slow
def test_traces_tell_requests_and_their_queries(api: Service) -> None:
    """In a process of its own: instrumentation stays for as long as a process lives."""
    pytest.importorskip("opentelemetry.sdk", reason="traces need: pip install 'lamella[otel]'")
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    environment = {
        "LAMELLA_HOME": str(api.home.settings.home),
        "LAMELLA_TRACES": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    credential = api.enrol()["Authorization"]
    try:
        with running_services(environment, count=1) as (address,):
            body = json.dumps({"model": MODEL}).encode()
            headers = {"authorization": credential, "content-type": "application/json"}
            ask = urllib.request.Request(f"{address}/v1/updates/check", body, headers)  # noqa: S310 - loopback
            urllib.request.urlopen(ask, timeout=30).close()  # noqa: S310 - loopback
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    told = b"".join(body for _, body in Collector.received)
    assert {path for path, _ in Collector.received} == {"/v1/traces"}
    assert b"/updates/check" in told
    assert b"FROM devices" in told
    assert credential.removeprefix("Bearer ").encode() not in told
