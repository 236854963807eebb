"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever the program happens to be. Inside some library's callback or finalizer it is
printed, or not even that, and the program goes on. So long waits ask here as well.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

_asked = threading.Event()


def install() -> None:
    """Treat SIGTERM, which a supervisor sends, as Ctrl-C, and remember either."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def raise_if_asked() -> None:
    """Raise the interruption again that was asked for.

    Raises:
        KeyboardInterrupt: Somebody asked to stop.
    """
    if _asked.is_set():
        raise KeyboardInterrupt


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    _asked.set()
    raise KeyboardInterrupt
