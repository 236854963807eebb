"""llama.cpp in its own process: what its end, the application's end and a bad file come to."""

import importlib.util
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from simulators.models import write_base_version

from client_sdk import DeviceError, EngineSettings
from client_sdk.backends.interface import BackendModel, GenerationRequest
from client_sdk.backends.llamacpp import LlamaCppBackend
from client_sdk.backends.llamacpp_server import Chunks, LlamaCppServer, _receive

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("gguf") is None,
    reason="the extra llamacpp is missing",
)
SHORT = GenerationRequest(token_ids=(1, 2, 3), max_new_tokens=4, temperature=0.0)
LONG = GenerationRequest(token_ids=(1, 2, 3), max_new_tokens=400, temperature=0.0)


@pytest.fixture
def backend(tmp_path: Path) -> LlamaCppBackend:
    tree = write_base_version(tmp_path / "v1")
    return LlamaCppBackend(BackendModel(tree / "base", "hash", tmp_path / "engine"), EngineSettings())


def process_of(backend: LlamaCppBackend) -> "subprocess.Popen[bytes]":
    assert backend._server is not None
    return backend._server._process


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_its_end_is_told_to_who_waits_and_the_next_request_opens_it_again(backend: LlamaCppBackend) -> None:
    words = "".join(piece.text for piece in backend.stream(SHORT))
    running = backend.stream(LONG)
    next(running)
    process_of(backend).kill()
    with pytest.raises(DeviceError, match="ended unexpectedly"):
        list(running)
    assert "".join(piece.text for piece in backend.stream(SHORT)) == words


@pytest.mark.parametrize("rest", [b"", b'{"id": 0, "ch', b"no JSON\n", b'{"id": 7, "chunk": {}}\n'])
def test_whatever_ends_the_answers_nobody_waits_for_ever(rest: bytes) -> None:
    chunks, is_over = Chunks(), threading.Event()
    waiting = {0: chunks}
    _receive(io.BytesIO(b'{"id": 0, "chunk": {"choices": []}}\n' + rest), waiting, is_over)
    assert is_over.is_set()
    assert chunks.get_nowait() == {"choices": []}
    told = chunks.get_nowait()
    assert told is not None
    assert "ended unexpectedly" in told["error"]["message"]
    assert chunks.get_nowait() is None
    assert not waiting


def test_its_end_between_two_requests_is_not_noticed(backend: LlamaCppBackend) -> None:
    words = "".join(piece.text for piece in backend.stream(SHORT))
    first = process_of(backend)
    first.kill()
    first.wait()
    assert "".join(piece.text for piece in backend.stream(SHORT)) == words
    assert process_of(backend).pid != first.pid


def test_closing_it_or_forgetting_it_ends_the_process(backend: LlamaCppBackend, tmp_path: Path) -> None:
    pid = process_of(backend).pid
    backend.close()
    assert not is_running(pid)
    with pytest.raises(DeviceError, match="closed"):
        list(backend.stream(SHORT))
    other = LlamaCppBackend(backend._model, EngineSettings())
    pid = process_of(other).pid
    del other
    wait_until_gone(pid)


def test_an_answer_that_is_given_up_ends_and_others_go_on(backend: LlamaCppBackend) -> None:
    other = backend.stream(SHORT)
    next(other)
    for _ in range(3):
        running = backend.stream(LONG)
        next(running)
        running.close()
    assert backend._server is not None
    assert len(list(other)) >= 1
    assert not backend._server._waiting


APPLICATION = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
from pathlib import Path
from client_sdk import EngineSettings
from client_sdk.backends.interface import BackendModel
from client_sdk.backends.llamacpp import LlamaCppBackend
backend = LlamaCppBackend(BackendModel(Path(sys.argv[1]), "hash", Path(sys.argv[2])), EngineSettings())
print(backend._server._process.pid, "xllamacpp" in sys.modules, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_the_application(backend: LlamaCppBackend, stop: signal.Signals) -> None:
    derived = str(backend._model.derived)
    with subprocess.Popen(
        [sys.executable, "-c", APPLICATION, str(backend._model.base), derived],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as application:
        assert application.stdout is not None
        pid, is_imported = application.stdout.readline().split()
        assert is_imported == "False"
        assert is_running(int(pid))
        application.send_signal(stop)
    wait_until_gone(int(pid))


def test_ctrl_c_in_the_terminal_is_the_applications_matter(backend: LlamaCppBackend) -> None:
    assert os.getpgid(process_of(backend).pid) != os.getpgid(0)


def test_what_it_cannot_open_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    order = {
        "model": str(tmp_path / "bad.gguf"),
        "context": 64,
        "parallel": 1,
        "tokens_at_once": 16,
        "threads": 1,
        "cache_type": "F16",
        "lookup": None,
        "adapters": [],
    }
    before = threading.active_count()
    for broken in (order, order | {"cache_type": "NONE"}, {}):
        with pytest.raises(DeviceError):
            LlamaCppServer(broken)
    assert threading.active_count() <= before


def test_an_interpreter_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(DeviceError, match="does not start"):
        LlamaCppServer({})
