"""An update service in one process: real signed metadata, packages and HTTP on loopback, and bad manners on call.

`faults` are used up by the following package downloads, one a request; `answers` by the following offers.
"""

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from simulators.fake_trust import FakeTrust
from simulators.versions import manifest_of

from delta_updates import (
    PROTOCOL_HEADER,
    KeyRequest,
    Offer,
    OutcomeReport,
    PackageRef,
    UpdateQuery,
    build_package,
)
from delta_updates.request_signature import (
    CLOCK_WINDOW_S,
    INPUT_HEADER,
    SIGNATURE_HEADER,
    SignatureInput,
    content_digest,
    from_text,
    parse_signature,
)

TOKEN = "enrolment-token-0001"
CREDENTIAL = "device-credential-0001"
DEVICE_ID = "0d" * 16


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way to answer a package request badly; unset parts are as they should be."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    ignores_range: bool = False
    content_range: str | None = None
    corrupt_at: int | None = None
    extra: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Lie:
    """What is answered instead of the truth, on every request for a path.

    Attributes:
        body: sent once, or over and over when `is_endless`; then no length is announced.
        byte_pause_s, header_pause_s, chunk_pause_s: waits before each byte of the body, of an endless line of the
            header, or of an endless length of a chunk.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    is_endless: bool = False
    byte_pause_s: float = 0.0
    header_pause_s: float = 0.0
    chunk_pause_s: float = 0.0


@dataclass
class Published:
    """One version as the service offers it."""

    version: int
    tree: Path
    tree_hash: str
    packages: dict[int | None, PackageRef]


class FakeUpdateService:
    """Keys, metadata and packages of one model; start it with `running()`."""

    def __init__(self, folder: Path, *, model: str = "tiny") -> None:
        self.model = model
        self.published: dict[int, Published] = {}
        self.reports: list[OutcomeReport] = []
        self.report_bodies: list[bytes] = []
        self.protocol: int | None = None
        """What it says it speaks; None says nothing, as the first release did."""
        self.public_key: str | None = None
        """Once set, this device is known by its signatures alone."""
        self.lost_key_answers = 0
        """So many keys are taken and the answers lost."""
        self.time_s: Callable[[], float] = time.time
        self.queries: list[UpdateQuery] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.faults: list[Fault] = []
        self.answers: list[Offer | int | bytes] = []
        self.lies: dict[str, Lie] = {}
        """By the beginning of a path, e.g. `/v1/metadata/timestamp`."""
        self.lied_bytes = 0
        self.report_status = 204
        self.metadata_status: int | None = None
        self.on_offer: Callable[[Offer], Offer] = lambda offer: offer
        self.files: dict[str, bytes] = {}
        self.address = ""
        self.trust = FakeTrust()
        # What is given out; tests put another dictionary here to lie.
        self.metadata = self.trust.metadata
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    # --- what an operator does

    def publish(
        self, tree: Path, *, version: int, deltas_from: tuple[int, ...] = (), facts: dict[str, Any] | None = None
    ) -> Published:
        """Build, sign and offer a version."""
        manifest = manifest_of(tree, version=version, model=self.model, facts=facts)
        self.add_target(f"manifests/{self.model}/{version}.json", manifest.to_bytes(), {})
        packages = {}
        for source in (None, *deltas_from):
            out = self._folder / f"{version}-from-{source}.lmpkg"
            build_package(self.published[source].tree if source else None, tree, out)
            name = "full" if source is None else f"from-{source}"
            path = f"packages/{self.model}/{version}/{name}.lmpkg"
            custom = {
                "model": self.model,
                "version": version,
                "tree_hash": manifest.tree_hash,
                "source_version": source,
            }
            self.add_target(path, out.read_bytes(), custom)
            raw = self.files[path]
            packages[source] = PackageRef(
                path=path, length=len(raw), sha256=hashlib.sha256(raw).hexdigest(), source_version=source
            )
        self.published[version] = Published(version, tree, manifest.tree_hash, packages)
        self.sign()
        return self.published[version]

    def add_target(self, path: str, raw: bytes, custom: dict[str, Any]) -> None:
        """Serve a file and name it where its role is asked; `sign` then signs it."""
        self.files[path] = raw
        self.trust.add_target(path, raw, custom)

    def sign(self, *, expires: datetime | None = None) -> None:
        """Sign everything but the root anew."""
        self.trust.sign(expires=expires)

    def rotate(self, *roles: str) -> None:
        """Replace keys of roles by new ones, in a new root."""
        self.trust.rotate(*roles)

    def enrolment(self, folder: Path) -> Path:
        """The file for a device."""
        path = folder / "enrolment.json"
        root = json.loads(self.metadata["1.root.json"])
        path.write_text(json.dumps({"server_url": self.address, "model": self.model, "token": TOKEN, "root": root}))
        return path

    def offer(self, version: int, *, source: int | None = None) -> Offer:
        published = self.published[version]
        return Offer(
            offer_id=f"offer-{len(self.queries)}",
            model=self.model,
            version=version,
            tree_hash=published.tree_hash,
            manifest_path=f"manifests/{self.model}/{version}.json",
            package=published.packages[source],
        )

    def outcomes(self) -> list[tuple[int, str]]:
        return [(report.version, report.outcome.value) for report in self.reports]

    def package_requests(self) -> list[dict[str, str]]:
        """The headers of each package request so far."""
        return [headers for _, path, headers in self.requests if path.startswith("/v1/targets/packages/")]

    # --- what a device meets

    def answer(self, query: UpdateQuery) -> Offer | int | bytes | None:
        self.queries.append(query)
        if self.answers:
            return self.answers.pop(0)
        newest = max(self.published, default=0)
        if newest <= (query.installed_version or 0):
            return None
        has_delta = not query.only_full and query.installed_version in self.published[newest].packages
        return self.on_offer(self.offer(newest, source=query.installed_version if has_delta else None))

    @contextmanager
    def running(self) -> Iterator["FakeUpdateService"]:
        server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": self}))
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
    def handle_error(self, request: object, client_address: object) -> None:
        """Devices that hang up are what is being tested; a handler's own mistake shows in the device's error."""


class _Handler(BaseHTTPRequestHandler):
    service: FakeUpdateService
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._note()
        lie = next((lie for path, lie in self.service.lies.items() if self.path.startswith(path)), None)
        if lie is not None:
            self._send_lie(lie)
        elif self.path.startswith("/v1/metadata/"):
            raw = self.service.metadata.get(self.path.removeprefix("/v1/metadata/"))
            status = self.service.metadata_status or (404 if raw is None else 200)
            self._send(status, raw if raw is not None and status == 200 else b"no such metadata")
        elif self.path.startswith("/v1/targets/"):
            path = unquote(self.path.removeprefix("/v1/targets/"))
            if path.startswith("packages/"):
                self._send_package(path, self.service.faults.pop(0) if self.service.faults else Fault())
            else:
                self._send(200, self.service.files[path])
        else:
            self._send(404, b"")

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/devices":
            is_right = json.loads(body)["token"] == TOKEN
            reply = json.dumps({"device_id": DEVICE_ID, "credential": CREDENTIAL}).encode()
            spoken = {} if self.service.protocol is None else {PROTOCOL_HEADER: str(self.service.protocol)}
            self._send(201, reply, spoken) if is_right else self._send(403, b'{"detail": "the token is used up"}')
        elif not self._is_known(body):
            self._send(401, b"who are you?")
        elif self.path == "/v1/updates/check":
            self._send_offer(self.service.answer(UpdateQuery.model_validate_json(body)))
        elif self.path == "/v1/updates/report":
            if self.service.report_status == 204:
                self.service.report_bodies.append(body)
                self.service.reports.append(OutcomeReport.model_validate_json(body))
            self._send(self.service.report_status, b"")
        else:
            self._send(404, b"")

    def do_PUT(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/devices/me/key" or self.service.protocol is None:
            self._send(404, b"")
        elif not self._is_known(body):
            self._send(401, b"who are you?")
        else:
            asked = KeyRequest.model_validate_json(body)
            self.service.public_key = asked.public_key
            if self.service.lost_key_answers:
                self.service.lost_key_answers -= 1
                self.close_connection = True
            else:
                self._send(204, b"")

    def _is_known(self, body: bytes) -> bool:
        public_key = self.service.public_key
        if public_key is None:
            return self.headers["Authorization"] == f"Bearer {CREDENTIAL}"
        claimed = SignatureInput.parse(self.headers.get(INPUT_HEADER, ""))
        signature = parse_signature(self.headers.get(SIGNATURE_HEADER, ""))
        if claimed is None or signature is None or abs(claimed.created - self.service.time_s()) > CLOCK_WINDOW_S:
            return False
        path, _, query = self.path.partition("?")
        signed = claimed.base(self.command, path, query, content_digest(body))
        try:
            Ed25519PublicKey.from_public_bytes(from_text(public_key)).verify(signature, signed)
        except InvalidSignature:
            return False
        return claimed.key_id == DEVICE_ID

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(self.service.time_s() if timestamp is None else timestamp, usegmt=True)

    def _send_offer(self, answer: Offer | int | bytes | None) -> None:
        spoken = {} if self.service.protocol is None else {PROTOCOL_HEADER: str(self.service.protocol)}
        if answer is None:
            self._send(204, b"", spoken)
        elif isinstance(answer, int):
            self._send(answer, b'{"detail": "on purpose"}')
        else:
            self._send(200, answer if isinstance(answer, bytes) else answer.model_dump_json().encode(), spoken)

    def _send_lie(self, lie: Lie) -> None:
        self.close_connection = True
        self.send_response(lie.status)
        for name, value in lie.headers.items():
            self.send_header(name, value)
        if lie.header_pause_s:
            self.flush_headers()
            self._drip(itertools.chain([b"X-Wait: "], itertools.repeat(b"1")), lie.header_pause_s)
        if lie.chunk_pause_s:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self._drip(itertools.repeat(b"0"), lie.chunk_pause_s)
        if not lie.is_endless:
            self.send_header("Content-Length", str(len(lie.body)))
        self.end_headers()
        if lie.byte_pause_s:
            self._drip((bytes([byte]) for byte in lie.body), lie.byte_pause_s)
        elif lie.is_endless:
            self._drip(itertools.cycle([lie.body]), 0.0)
        else:
            self.wfile.write(lie.body)

    def _drip(self, pieces: Iterator[bytes], pause_s: float) -> None:
        """Send for as long as the device listens."""
        for piece in pieces:
            time.sleep(pause_s)
            self.wfile.write(piece)
            self.service.lied_bytes += len(piece)

    def _send_package(self, path: str, fault: Fault) -> None:
        raw = self.service.files[path]
        etag = f'"{hashlib.sha256(raw).hexdigest()}"'
        if fault.corrupt_at is not None:
            raw = raw[: fault.corrupt_at] + bytes([raw[fault.corrupt_at] ^ 1]) + raw[fault.corrupt_at + 1 :]
        headers = {"ETag": etag}
        status, start = 200, 0
        wanted = self.headers.get("Range")
        if wanted and not fault.ignores_range and self.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(raw) else 416
            headers["Content-Range"] = fault.content_range or f"bytes {start}-{len(raw) - 1}/{len(raw)}"
        if fault.status is not None:
            self._send(fault.status, b"on purpose", fault.headers)
            return
        body = raw[start:] + fault.extra
        self._send(status, body, headers | fault.headers, cut_after=fault.cut_after)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut_after: int | None = None
    ) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if status != 204:
            self.wfile.write(body if cut_after is None else body[:cut_after])
        if cut_after is not None and cut_after < len(body):
            self.close_connection = True

    def _note(self) -> None:
        self.service.requests.append((self.command, self.path, dict(self.headers.items())))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Silence."""
