"""A network between a device and its service: slow, lossy, cutting, corrupting, or asking for a log-in first.

An HTTP proxy that passes every request on to the real service and treats the answer as its `Weather` says. Chance is
drawn from a seed, so that a failure can be repeated.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PORTAL = b"<!doctype html><title>Log in</title><p>Welcome to the hotel."
CHUNK_BYTES = 1460


@dataclass(frozen=True, kw_only=True)
class Weather:
    """What happens to an answer. Chances are for each packet of 1,460 bytes.

    Attributes:
        bytes_per_s: bandwidth; None is unlimited.
        latency_s: before the first byte of an answer.
        loss: a packet is lost and sent again: it costs a tenth of a second and nothing else, as TCP has it.
        reset: the connection is reset.
        truncate: the connection ends in order, but early.
        corrupt: one bit of the packet is flipped, which TCP's checksum did not see.
        fault: chance for each answer (not packet) that one of the above, an error 503 or a log-in page spoils it.
        is_portal: answers with a log-in page instead, for such paths.
        is_unavailable: answers 503 instead.
    """

    bytes_per_s: float | None = None
    latency_s: float = 0.0
    loss: float = 0.0
    reset: float = 0.0
    truncate: float = 0.0
    corrupt: float = 0.0
    fault: float = 0.0
    is_portal: Callable[[str], bool] = lambda _path: False
    is_unavailable: bool = False


_FAULTS: tuple[dict[str, Any], ...] = (
    {"reset": 1.0},
    {"truncate": 1.0},
    {"corrupt": 1.0},
    {"is_portal": lambda _path: True},
    {"is_unavailable": True},
)


class Network:
    """A proxy to `upstream`; `weather` may be changed while it runs."""

    def __init__(self, upstream: str, weather: Weather, *, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.weather = weather
        self.address = ""
        self.bytes_sent = 0
        self.accidents: list[str] = []
        self.random = random.Random(seed)

    @contextmanager
    def running(self) -> Iterator["Network"]:
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"network": self}))
        self.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A broken connection is what is being simulated."""


class _Handler(BaseHTTPRequestHandler):
    network: Network
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_POST(self) -> None:
        self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def _pass_on(self, body: bytes | None) -> None:
        weather = self.network.weather
        time.sleep(weather.latency_s)
        if self.network.random.random() < weather.fault:
            weather = replace(weather, **self.network.random.choice(_FAULTS))
        if weather.is_unavailable:
            self.network.accidents.append("503")
            self._head(503, [("Content-Length", "0"), ("Retry-After", "1")])
            return
        if weather.is_portal(self.path):
            self.network.accidents.append("portal")
            self._head(200, [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(PORTAL)))])
            self.wfile.write(PORTAL)
            return
        upstream = http.client.HTTPConnection(self.network.host, self.network.port, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            upstream.request(self.command, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            hop = {"connection", "transfer-encoding", "date", "server"}
            self._head(answer.status, [(name, value) for name, value in answer.getheaders() if name.lower() not in hop])
            self._send(answer, weather)
        finally:
            upstream.close()

    def _head(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def _send(self, answer: http.client.HTTPResponse, weather: Weather) -> None:
        chance = self.network.random
        while packet := answer.read(CHUNK_BYTES):
            if chance.random() < weather.loss:
                self.network.accidents.append("loss")
                time.sleep(0.1)
            if chance.random() < weather.reset:
                self.network.accidents.append("reset")
                self._reset()
                return
            if chance.random() < weather.truncate:
                self.network.accidents.append("truncate")
                self.close_connection = True
                return
            if chance.random() < weather.corrupt:
                self.network.accidents.append("corrupt")
                at = chance.randrange(len(packet))
                packet = packet[:at] + bytes([packet[at] ^ 1 << chance.randrange(8)]) + packet[at + 1 :]
            if weather.bytes_per_s:
                time.sleep(len(packet) / weather.bytes_per_s)
            self.wfile.write(packet)
            self.network.bytes_sent += len(packet)

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Silence."""
