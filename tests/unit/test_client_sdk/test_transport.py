"""The connection to the enrolled server: where it may lead, and how long and how much it may send."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from simulators.fake_clock import FakeClock
from simulators.update_service import FakeUpdateService

from client_sdk.errors import EnrolmentError, ServiceRefusedError, ServiceUnavailableError
from client_sdk.identity import Bearer
from client_sdk.pace import Limits
from client_sdk.responses import printable
from client_sdk.transport import Transport, checked_server_url


@contextmanager
def answering(raw: bytes) -> Iterator[str]:
    """A server that sends `raw` to whoever connects, whatever they say."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    connection.sendall(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    "url",
    ["https://updates.example.org", "https://h:8443/base", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost"],
)
def test_addresses_that_are_safe_for_a_credential(url: str) -> None:
    assert checked_server_url(url + "/", allow_http=False) == url


@pytest.mark.parametrize(
    "url", ["http://example.org", "http://10.0.0.1:8080", "http://localhost.example.org", "http://127.0.0.1.nip.io"]
)
def test_plain_http_to_another_machine_needs_the_flag(url: str) -> None:
    with pytest.raises(EnrolmentError, match="--allow-http"):
        checked_server_url(url, allow_http=False)
    assert checked_server_url(url, allow_http=True) == url


@pytest.mark.parametrize(
    "url", ["ftp://h", "https://", "h", "https://user:pw@h", "https://h?x=1", "https://h#x", "file:///etc"]
)
def test_what_is_no_server_address(url: str) -> None:
    with pytest.raises(EnrolmentError, match="not a server address"):
        checked_server_url(url, allow_http=True)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_refused_and_the_credential_stays(service: FakeUpdateService, status: int) -> None:
    head = f"HTTP/1.1 {status} Moved\r\nLocation: {service.address}/v1/updates/check\r\nContent-Length: 0\r\n\r\n"
    with answering(head.encode()) as address, pytest.raises(ServiceRefusedError, match="redirects are refused"):
        Transport(address, identity=Bearer("secret-credential")).call("GET", "/x", max_bytes=10)
    assert service.requests == []


def sent_on(status: int, location: str) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def open_and_follow(transport: Transport) -> None:
    with transport.open("GET", "/x", headers={"Range": "bytes=5-"}, follow=True):
        pass


def test_a_download_follows_one_redirect_without_the_credential(service: FakeUpdateService) -> None:
    with answering(sent_on(307, f"{service.address}/v1/healthz")) as address:
        transport = Transport(address, identity=Bearer("secret-credential"))
        with pytest.raises(ServiceUnavailableError, match="sends to answers 404"):
            open_and_follow(transport)
    (request,) = service.requests
    assert "secret-credential" not in str(request)


@pytest.mark.parametrize("status", [301, 302, 303, 308])
def test_other_redirects_are_refused_for_downloads_too(status: int) -> None:
    told = pytest.raises(ServiceRefusedError, match="redirects are refused")
    with answering(sent_on(status, "https://elsewhere.example/x")) as address, told:
        open_and_follow(Transport(address))


@pytest.mark.parametrize(
    "location", ["", "/x", "file:///etc/passwd", "https://user:pw@h/x", "ftp://h/x", "https://[", "//h/x"]
)
def test_a_download_is_not_sent_just_anywhere(location: str) -> None:
    with answering(sent_on(307, location)) as address, pytest.raises(ServiceRefusedError, match="not https"):
        open_and_follow(Transport(address))


def test_a_second_redirect_is_not_followed(service: FakeUpdateService) -> None:
    with answering(sent_on(307, f"{service.address}/x")) as second, answering(sent_on(307, second)) as first:  # noqa: SIM117
        with pytest.raises(ServiceUnavailableError, match="sends to answers 307"):
            open_and_follow(Transport(first))
    assert service.requests == []


def test_an_encrypted_server_cannot_send_a_device_to_its_own_network() -> None:
    transport = Transport("https://updates.example.org")
    with pytest.raises(ServiceRefusedError, match="not https"):
        transport._require_safe("http://127.0.0.1:8080/admin")
    assert transport._require_safe("https://bucket.example/x?sig=1") == "https://bucket.example/x?sig=1"


def test_an_answer_larger_than_allowed_is_refused() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n01234567890"
    with answering(raw) as address, pytest.raises(ServiceRefusedError, match="larger than the 10 bytes"):
        Transport(address).call("GET", "/x", max_bytes=10)


def test_an_endless_answer_without_a_length_is_cut() -> None:
    raw = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 200_000
    with answering(raw) as address, pytest.raises(ServiceRefusedError, match="larger than"):
        Transport(address).call("GET", "/x", max_bytes=100_000)


def test_a_small_answer_has_a_deadline_as_a_whole() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n01234"
    clock = FakeClock(seconds_per_look=100.0)
    limits = Limits(attempts=1)
    with answering(raw) as address, pytest.raises(ServiceUnavailableError, match="longer than 60 s"):
        Transport(address, clock=clock, limits=limits).call("GET", "/x", max_bytes=10)


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n0", b"\x00" * 100])
def test_a_broken_answer_is_tried_again_and_then_told(raw: bytes) -> None:
    clock = FakeClock()
    with answering(raw) as address, pytest.raises(ServiceUnavailableError, match="does not answer"):
        Transport(address, clock=clock, limits=Limits(attempts=3, read_timeout_s=2.0)).call("GET", "/x", max_bytes=100)
    assert len(clock.sleeps) == 2


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServiceUnavailableError, match="does not answer"):
        Transport(f"http://127.0.0.1:{port}", clock=FakeClock()).call("GET", "/x", max_bytes=100)


def test_a_refusal_says_the_services_own_words_without_control_characters() -> None:
    body = b'{"detail": "used up\\u001b[2J"}'
    raw = b"HTTP/1.1 410 Gone\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering(raw) as address, pytest.raises(ServiceRefusedError, match=r"410: used up \[2J") as caught:
        Transport(address).call("GET", "/x", max_bytes=100)
    assert caught.value.status == 410
    assert "\x1b" not in str(caught.value)


def test_foreign_text_is_one_short_line() -> None:
    assert printable("a\n\tb\x00" + "c" * 500) == "a  b " + "c" * 295
