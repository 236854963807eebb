"""Debian's own `swupdate` against the service: polls, a download that is cut, feedback, and then no more."""

import hashlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest
import uvicorn
from simulators.server_home import MODEL, open_home
from simulators.swu import self_signed
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import create_app
from server.config import Settings
from server.ddi import next_step

pytestmark = pytest.mark.slow
_SWUPDATE = os.environ.get("LAMELLA_TEST_SWUPDATE") or shutil.which("swupdate")
_WHY_SKIPPED = (
    "needs SWUpdate: `apt-get install swupdate`, or `apt-get download` and `dpkg -x` of it and its libraries, and "
    "LAMELLA_TEST_SWUPDATE=<its binary>"
)
_DEADLINE_S = 15.0


class CutsOnce:
    """Lets a download of an image break off once in the middle, and keeps what was asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.requests: list[tuple[str, str, str | None]] = []
        self.is_cut = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["method"], scope["path"], headers.get("range")))
        if self.is_cut or scope["method"] != "GET" or not scope["path"].endswith(".swu"):
            return await self._app(scope, receive, send)

        async def send_half(message: Message) -> None:
            if message["type"] != "http.response.body":
                return await send(message)
            self.is_cut = True
            half = message["body"][: len(message["body"]) // 2]
            await send({"type": "http.response.body", "body": half, "more_body": True})
            raise ConnectionError("cut")

        return await self._app(scope, receive, send_half)


class Running:
    """The service on a port, over a home with two versions in it."""

    def __init__(self, folder: Path) -> None:
        home = open_home(folder)
        home.base()
        home.publish(1, loss=None)
        home.registry.close()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.certificate = self_signed(folder)
        self.settings = Settings(
            home=home.settings.home,
            public_url=self.url,
            ddi_poll_seconds=1,
            ddi_install_folder=str(folder / "device"),
            ddi_signing_key=self.certificate[0],
            ddi_signing_certificate=self.certificate[1],
        )
        app = create_app(self.settings)
        self.registry = app.state.services.registry
        self.wire = CutsOnce(app)
        config = uvicorn.Config(self.wire, host="127.0.0.1", port=port, log_level="critical", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as service:
        yield service


def swupdate(running: Running, token: str, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """`swupdate` as a daemon that polls; its sockets lie in a folder of its own."""
    assert _SWUPDATE is not None
    binary = Path(_SWUPDATE).resolve()
    libraries = binary.parents[2] / "usr/lib/x86_64-linux-gnu"
    (folder / "sockets").mkdir(exist_ok=True)
    poll = f"-t {MODEL} -u {running.url} -i gate-7 -k {token} -p 1 -w 1 -r 5 {' '.join(more)}"
    command = [str(binary), "-v", "-m", "-M", "-k", str(running.certificate[1]), "-H", "board:1.0", "-u", poll]
    environment = {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(folder / "sockets"),
        "RUNTIME_DIRECTORY": str(folder / "sockets"),
        "LD_LIBRARY_PATH": str(libraries),
    }
    with (folder / "swupdate.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)


def wait_for(what: str, is_there: object, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not is_there():  # type: ignore[operator]
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        assert time.monotonic() < deadline, f"no {what}:\n{log.read_text(errors='replace')[-4000:]}"
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.mark.skipif(_SWUPDATE is None, reason=_WHY_SKIPPED)
def test_swupdate_polls_installs_and_confirms(running: Running, tmp_path: Path) -> None:
    token, controller = running.registry.issue_target_token(MODEL, "gate-7")
    device_id, log = controller.device.device_id, tmp_path / "swupdate.log"
    installed = tmp_path / "device" / f"{MODEL}.lmpkg"
    process = swupdate(running, token, tmp_path)
    try:
        wait_for("file", installed.exists, process, log)
    finally:
        stop(process)
    package = running.registry.packages(MODEL, 1)[0]
    assert hashlib.sha256(installed.read_bytes()).hexdigest() == package.sha256
    assert running.wire.is_cut
    assert [part for method, _, part in running.wire.requests if method == "GET" and part], "it began anew"
    # Installed is not committed: it says so after a restart, once told that the new version works.
    assert running.registry.device(device_id).installed_version is None
    again = swupdate(running, token, tmp_path, "-c 2")
    try:
        wait_for("report", lambda: running.registry.device(device_id).installed_version == 1, again, log)
        polls = len(running.wire.requests)
        wait_for("poll after it", lambda: len(running.wire.requests) > polls, again, log)
    finally:
        stop(again)
    # Whether it also tells that it installed is a matter of when it was stopped.
    assert {report.outcome for report in running.registry.reports(device_id)} - {"applied"} == {"confirmed"}
    assert running.registry.unfinished_action(device_id) is None
    assert len(running.registry.offers(device_id)) == 1


@pytest.mark.skipif(_SWUPDATE is None, reason=_WHY_SKIPPED)
def test_swupdate_gives_up_what_was_withdrawn(running: Running, tmp_path: Path) -> None:
    token, controller = running.registry.issue_target_token(MODEL, "gate-7")
    device_id = controller.device.device_id
    action = next_step(running.registry, controller.device, now=datetime.now(UTC)).deploy
    assert action is not None
    running.registry.withdraw(MODEL, 1, reason="answers in rhymes")
    process = swupdate(running, token, tmp_path)
    try:
        wait_for(
            "end of the action",
            lambda: running.registry.action(device_id, action).state == "canceled",
            process,
            tmp_path / "swupdate.log",
        )
    finally:
        stop(process)
    assert running.registry.reports(device_id) == ()
    assert not (tmp_path / "device").exists()
