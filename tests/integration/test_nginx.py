"""Packages handed over to a real nginx, configured with the very lines of docs/operating.md."""

from __future__ import annotations

import re
import shutil
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from simulators.server_home import MODEL
from simulators.service_process import free_port, running_process, running_services
from simulators.update_api import Service

from client_sdk.disk import LocalDisk
from client_sdk.download import HttpFetcher
from client_sdk.identity import KeyPair
from client_sdk.pace import Limits
from client_sdk.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="needs nginx: `apt-get install nginx-light`"),
]
PACKAGE = f"packages/{MODEL}/1/full.lmpkg"
DOCUMENT = Path(__file__).parents[2] / "docs" / "operating.md"
SERVER = """
daemon off; user root; pid {folder}/nginx.pid; error_log stderr; worker_processes 1;
events {{}}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    {locations}
  }}
}}
"""


def documented_locations(*, service: str, artifacts: Path) -> str:
    """What the documentation tells operators to write, with this test's address and folder."""
    block = re.search(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert block is not None
    text = block[1]
    for known, here in (("http://127.0.0.1:8080", service), ("/var/lib/lamella/artifacts/", f"{artifacts}/")):
        assert known in text, f"docs/operating.md says {known!r} no more"
        text = text.replace(known, here)
    return text


@contextmanager
def running_nginx(folder: Path, *, service: str, artifacts: Path) -> Iterator[str]:
    folder.mkdir()
    port = free_port()
    locations = documented_locations(service=service, artifacts=artifacts)
    (folder / "nginx.conf").write_text(SERVER.format(folder=folder, port=port, locations=locations))
    command = [str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running_process(command, address=f"http://127.0.0.1:{port}", path="/v1/healthz") as address:
        yield address


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_nginx_sends_what_the_service_let_a_device_have_and_nothing_else(tmp_path: Path) -> None:
    with Service(tmp_path, downloads="nginx") as api:
        api.home.base()
        api.home.publish(1, loss=None)
        bearer = api.enrol()
        device_id = bearer["Authorization"].removeprefix("Bearer ").split(".")[0]
        pair = KeyPair(device_id, Ed25519PrivateKey.generate())
        known = api.client.put("/v1/devices/me/key", json=pair.request().model_dump(), headers=bearer)
        assert known.status_code == 204
        (package,) = api.home.registry.packages(MODEL, 1)
        settings = api.home.settings
        content = (settings.artifacts_dir / package.sha256[:2] / package.sha256).read_bytes()
    environment = {"LAMELLA_HOME": str(settings.home), "LAMELLA_DOWNLOADS": "nginx"}
    with (
        running_services(environment, count=1) as (service,),
        running_nginx(tmp_path / "nginx", service=service, artifacts=settings.artifacts_dir) as address,
    ):
        transport = Transport(address, identity=pair, limits=Limits(attempts=1))
        out = tmp_path / "device" / "package"
        out.parent.mkdir()
        # A download that was cut goes on where it stopped: nginx answers the range.
        out.with_name("package.part").write_bytes(content[:1000])
        moved = HttpFetcher(transport, LocalDisk()).fetch(
            PACKAGE, out, length=package.length, sha256=package.sha256, on_progress=lambda _done, _all: None
        )
        assert out.read_bytes() == content
        assert moved == len(content) - 1000
        with transport.open("GET", f"/v1/targets/{PACKAGE}") as answer:
            assert answer.status == 200
            assert answer.headers["Server"].startswith("nginx")
            assert "X-Accel-Redirect" not in answer.headers
        assert status_of(f"{address}/v1/targets/{PACKAGE}") == 401
        # The folder is nginx's own way, and nobody else's.
        assert status_of(f"{address}/artifacts/{package.sha256[:2]}/{package.sha256}") == 404
        for way_out in (
            "/artifacts/../registry.sqlite",
            "/artifacts/%2e%2e/operator.token",
            "/artifacts../operator.token",
        ):
            assert status_of(address + way_out) in {400, 404}
        # What the service itself sends is the address alone.
        direct = Transport(service, identity=pair, limits=Limits(attempts=1))
        with direct.open("GET", f"/v1/targets/{PACKAGE}") as answer:
            assert answer.headers["X-Accel-Redirect"].startswith("/artifacts/")
            assert answer.read() == b""
