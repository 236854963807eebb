"""Which devices were here: noted in memory by each request, and in the database for many at once."""

from __future__ import annotations

import asyncio
import logging
from threading import Lock
from typing import TYPE_CHECKING, Final

from anyio import to_thread

from server.errors import ServerError

if TYPE_CHECKING:
    from server.registry import Registry

_WRITE_EVERY_S: Final = 10.0
# Some megabytes. While the database does not answer, who is beyond it is noted at the next poll.
_MOST_WAITING: Final = 100_000
_log = logging.getLogger("lamella.api")


class SeenDevices:
    """Collects who asked, and writes it every few seconds; a crash loses those seconds and nothing else."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: set[str] = set()
        self._lock = Lock()

    def note(self, device_id: str) -> None:
        """A device asks; that it exists was proved before."""
        with self._lock:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting.add(device_id)

    def write(self) -> None:
        """Write down who was here.

        Raises:
            ServerError: The database does not answer; they still wait.
        """
        with self._lock:
            seen, self._waiting = self._waiting, set()
        try:
            self._registry.note_seen(seen)
        except ServerError:
            with self._lock:
                self._waiting |= seen
            raise

    async def keep_writing(self) -> None:
        """Write every few seconds, for as long as the service runs."""
        while True:
            await asyncio.sleep(_WRITE_EVERY_S)
            try:
                await to_thread.run_sync(self.write)
            except ServerError as error:
                _log.warning("when devices were here is written later: %s", error)
