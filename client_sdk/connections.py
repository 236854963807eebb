"""Connections that end: a socket's time-out starts again with every byte, so one that drips would hold us for days.

Source: the slow retrieval attack, TUF specification 1.0, section 1.5.2.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


def bounded_pool(timeout: urllib3.Timeout, *, header_deadline_s: float) -> urllib3.PoolManager:
    """A pool in which the header of an answer must be whole within `header_deadline_s`, however it drips."""

    class Plain(HTTPConnection):
        def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
            with _header_deadline(self, header_deadline_s):
                return super().getresponse()

    class Tls(HTTPSConnection):
        def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
            with _header_deadline(self, header_deadline_s):
                return super().getresponse()

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class TlsPool(HTTPSConnectionPool):
        ConnectionCls = Tls

    manager = urllib3.PoolManager(timeout=timeout, retries=False)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}
    return manager


@contextmanager
def must_progress(response: urllib3.BaseHTTPResponse, *, every_s: float, progress: Callable[[], int]) -> Iterator[None]:
    """Cut the answer off when `progress()` has not changed for `every_s`.

    A rate that is computed when bytes arrive cannot see bytes that never do: the length of a chunk may drip for ever.

    Raises:
        TimeoutError: it was cut off.
    """
    ended, is_cut = threading.Event(), threading.Event()

    def watch() -> None:
        seen = progress()
        while not ended.wait(every_s):
            if progress() == seen:
                is_cut.set()
                with suppress(OSError, ValueError, AttributeError):
                    response.shutdown()
                return
            seen = progress()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    # What a cut leaves can look like a whole answer, only shorter.
    if is_cut.is_set():
        raise TimeoutError(f"nothing came for {every_s:.0f} s")


@contextmanager
def _header_deadline(connection: HTTPConnection, seconds: float) -> Iterator[None]:
    is_cut = threading.Event()

    def cut() -> None:
        is_cut.set()
        _shut(connection.sock)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if is_cut.is_set():
        raise TimeoutError(f"the answer did not begin within {seconds:.0f} s")


def _shut(sock: socket.socket | None) -> None:
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
