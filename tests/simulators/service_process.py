"""The update service in processes of its own, as uvicorn runs it."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http import HTTPStatus

_PATIENCE_S = 120.0


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_process(
    command: list[str], *, address: str, path: str, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run a command that serves HTTP until the block ends; its address, once `path` is answered there."""
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            try:
                urllib.request.urlopen(address + path, timeout=5).close()  # noqa: S310 - loopback
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == HTTPStatus.NOT_FOUND:
                    break  # it listens, and has no page for asking
            except OSError:
                pass
            else:
                break
            assert time.monotonic() < deadline, f"{command} does not answer"
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def running_services(settings: Mapping[str, str], *, count: int) -> Iterator[list[str]]:
    """`count` processes of the API on one database and one home; their addresses."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAMELLA_")}
    with ExitStack() as stack:
        addresses = []
        for _ in range(count):
            port = free_port()
            command = [sys.executable, "-m", "uvicorn", "--factory", "server.api:create_app", "--port", str(port)]
            addresses.append(
                stack.enter_context(
                    running_process(
                        [*command, "--log-level", "warning"],
                        address=f"http://127.0.0.1:{port}",
                        path="/v1/healthz",
                        environment={**kept, **settings},
                    )
                )
            )
        yield addresses
