"""The application's end of `llamacpp_process.py`: one opened model, asked by several threads at a time."""

import contextlib
import itertools
import json
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from client_sdk.errors import DeviceError

Chunks = queue.SimpleQueue[dict[str, Any] | None]
"""What llama.cpp's server streams for one request, and None at the end."""

_PROCESS = Path(__file__).with_name("llamacpp_process.py")
_GONE = {"error": {"message": "llama.cpp ended unexpectedly; ask again"}}


class LlamaCppServer:
    """A model that llama.cpp has open; the process ends with this object, and with the application."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        """Open a model and wait until it answers.

        Args:
            order: see `llamacpp_process.py`.

        Raises:
            DeviceError: llama.cpp does not load it.
        """
        # -P: what lies beside the program is no module of its own there.
        # A group: Ctrl-C is the application's matter. No session: Linux shares the cores between sessions, and where
        # two engines answer, each waits for seconds.
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own file
                [sys.executable, "-P", str(_PROCESS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
            )
        except OSError as error:
            raise DeviceError(f"its process does not start ({error})") from error
        self._numbers = itertools.count()
        self._waiting: dict[int, Chunks] = {}
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, _end, self._process)
        self._is_over = threading.Event()
        answers = self._process.stdout
        self._tell(dict(order))
        first = json.loads((answers.readline() if answers else b"") or b"{}")
        if answers is None or "is_open" not in first:
            self.close()
            if answers:
                answers.close()
            raise DeviceError(first.get("error", "its process ended"))
        reading = threading.Thread(
            target=_receive, args=(answers, self._waiting, self._is_over), name="llamacpp", daemon=True
        )
        reading.start()

    @property
    def is_alive(self) -> bool:
        """Whether its process still runs, and is understood."""
        return not self._is_over.is_set() and self._process.poll() is None

    @contextlib.contextmanager
    def asking(self, body: Mapping[str, Any]) -> Iterator[Chunks]:
        """Send a request; leaving early ends it, and waits until it has ended."""
        number, chunks = next(self._numbers), Chunks()
        self._waiting[number] = chunks
        if self._is_over.is_set():
            _drop(self._waiting)
        try:
            self._tell({"id": number, "body": dict(body)})
            yield chunks
        finally:
            # None while it is still here: nobody else takes it out before the end of the request.
            if number in self._waiting:
                self._tell({"id": number})
                while number in self._waiting:
                    chunks.get()

    def close(self) -> None:
        """End the process, whatever it is doing, and wait until its memory is free."""
        self._close()

    def _tell(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            try:
                stdin = self._process.stdin
                if stdin is None:  # pragma: no cover - it was opened with one
                    return
                stdin.write(line)
                stdin.flush()
            except (OSError, ValueError):
                # Whoever waits is told by the reader that there is no more.
                _drop(self._waiting)


def _receive(answers: IO[bytes], waiting: dict[int, Chunks], is_over: threading.Event) -> None:
    """Hand on what arrives. It holds no reference to the server, which could not be forgotten otherwise."""
    try:
        with answers:
            for line in answers:
                message = json.loads(line)
                number = message["id"]
                if "chunk" in message:
                    waiting[number].put(message["chunk"])
                else:
                    waiting.pop(number).put(None)
    except (ValueError, KeyError):
        # Cut off in the middle of a line, or about a request that was told already that this is over.
        pass
    finally:
        # Whatever ended this: nobody waits for ever.
        is_over.set()
        _drop(waiting)


def _drop(waiting: dict[int, Chunks]) -> None:
    while waiting:
        _, chunks = waiting.popitem()
        chunks.put(_GONE)
        chunks.put(None)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what was buffered has nowhere to go
            process.stdin.close()
