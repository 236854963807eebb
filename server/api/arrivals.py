"""Devices that ask at the same moment are looked up together: one read of the database for all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from anyio import to_thread

if TYPE_CHECKING:
    from sqlalchemy import Row

    from server.registry import Registry

    Rows = dict[str, Row[Any]]

# A device waits that much longer while many ask; the next read is for all that came meanwhile.
_BETWEEN_READS_S: Final = 0.01


class Arrivals:
    """Reads what is known of devices that ask. Of one event loop: nothing here is shared between threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._next: tuple[set[str], asyncio.Task[Rows]] | None = None
        self._last_read_at = 0.0

    async def row(self, device_id: str) -> Row[Any] | None:
        """What is known of a device now; None: nothing. Never older than the question.

        Raises:
            DatabaseError: The database does not answer.
        """
        if self._next is None:
            together: set[str] = set()
            self._next = (together, asyncio.create_task(self._read(together)))
        waiting, reading = self._next
        waiting.add(device_id)
        # Who gives up takes the answer from nobody else.
        return (await asyncio.shield(reading)).get(device_id)

    async def _read(self, waiting: set[str]) -> Rows:
        try:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(max(0.0, self._last_read_at + _BETWEEN_READS_S - loop.time()))
            self._last_read_at = loop.time()
        finally:
            # Whoever comes from now on is too late for this read.
            self._next = None
        return await to_thread.run_sync(self._registry.rows_asking, waiting)
