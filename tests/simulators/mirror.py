"""A mirror of packages, which may be away, lie, or stop in the middle."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Mirror:
    """Serves target paths from its root; notes what it is asked for."""

    def __init__(self, files: Mapping[str, bytes], behaviour: str) -> None:
        self.files = files
        self.behaviour = behaviour
        self.address = ""
        self.requests: list[tuple[str, dict[str, str]]] = []


@contextmanager
def mirror_of(files: Mapping[str, bytes], *, behaviour: str = "good") -> Iterator[Mirror]:
    """Run a mirror that is `good`, `away`, `lies` (one wrong byte), `cuts`, has a `portal`, or `other` bytes."""
    mirror = Mirror(files, behaviour)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"mirror": mirror}))
    mirror.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    mirror: Mirror
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.mirror.requests.append((self.path, dict(self.headers.items())))
        raw = self.mirror.files[unquote(self.path.lstrip("/"))]
        behaviour = self.mirror.behaviour
        if behaviour == "away":
            self._answer(503, b"")
        elif behaviour == "portal":
            self._answer(200, b"<html>Log in", content_type="text/html")
        elif behaviour == "lies":
            self._answer(200, raw[:-1] + bytes([raw[-1] ^ 1]))
        elif behaviour == "other":
            self._answer(200, b"something else")
        elif behaviour == "cuts":
            self._answer(200 if len(self.mirror.requests) == 1 else 503, raw, sent=len(raw) // 2)
        else:
            self._answer(200, raw)

    def _answer(
        self, status: int, body: bytes, *, sent: int | None = None, content_type: str = "application/octet-stream"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"of-the-mirror"')
        self.end_headers()
        if sent is not None:
            self.close_connection = True
        if status == 200:
            self.wfile.write(body[:sent])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Silence."""
