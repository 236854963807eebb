"""Devices that ask at the same moment share one read, which is never older than their question."""

import asyncio
import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, cast

import pytest
from simulators.update_api import Service

from server.api.arrivals import Arrivals
from server.errors import DatabaseError
from server.registry import Registry
from server.registry.transactions import NeedsDatabaseError


class Database:
    """A registry that knows every device, until told otherwise; a read ends when `answers` is set."""

    def __init__(self) -> None:
        self.reads: list[list[str]] = []
        self.answers = threading.Event()
        self.answers.set()
        self.content = "before"
        self.failure: Exception | None = None
        self.on_read: Callable[[], object] = lambda: None

    def rows_asking(self, device_ids: Collection[str]) -> dict[str, str]:
        self.reads.append(sorted(device_ids))
        content = self.content
        self.on_read()
        assert self.answers.wait(10)
        if self.failure is not None:
            raise self.failure
        return {device: f"{device} {content}" for device in device_ids if device != "nobody"}

    def arrivals(self) -> Any:
        return Arrivals(cast("Registry", self))


@pytest.fixture
def database() -> Database:
    return Database()


def test_who_asks_together_is_read_together(database: Database) -> None:
    async def ask() -> list[str | None]:
        arrivals = database.arrivals()
        return await asyncio.gather(*(arrivals.row(name) for name in ("a", "b", "a", "nobody")))

    assert asyncio.run(ask()) == ["a before", "b before", "a before", None]
    assert database.reads == [["a", "b", "nobody"]]


def test_who_comes_while_others_are_read_is_read_anew(database: Database) -> None:
    async def ask() -> tuple[str, str]:
        arrivals, loop, is_reading = database.arrivals(), asyncio.get_running_loop(), asyncio.Event()
        database.on_read = lambda: loop.call_soon_threadsafe(is_reading.set)
        database.answers.clear()
        first = asyncio.create_task(arrivals.row("a"))
        await is_reading.wait()
        database.content = "after"
        second = asyncio.create_task(arrivals.row("a"))
        await asyncio.sleep(0)
        database.answers.set()
        return await first, await second

    assert asyncio.run(ask()) == ("a before", "a after")
    assert database.reads == [["a"], ["a"]]


def test_a_database_that_does_not_answer_is_told_to_all_and_asked_again(database: Database) -> None:
    async def ask() -> list[object]:
        arrivals = database.arrivals()
        database.failure = DatabaseError("down")
        failed = await asyncio.gather(arrivals.row("a"), arrivals.row("b"), return_exceptions=True)
        database.failure = None
        return [*failed, await arrivals.row("a")]

    *failed, found = asyncio.run(ask())
    assert [type(one) for one in failed] == [DatabaseError, DatabaseError]
    assert found == "a before"


def test_who_gives_up_takes_the_answer_from_nobody(database: Database) -> None:
    async def ask() -> str:
        arrivals = database.arrivals()
        first, second = (asyncio.create_task(arrivals.row(name)) for name in ("a", "b"))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(ask()) == "b before"


def test_another_event_loop_begins_anew(database: Database) -> None:
    arrivals = database.arrivals()
    assert [asyncio.run(arrivals.row("a")) for _ in range(2)] == ["a before", "a before"]


def test_a_registry_that_may_not_wait_says_so_and_does_nothing(registry: Registry) -> None:
    before = registry.change_token()
    for ask in (
        registry.change_token,
        registry.models,
        lambda: registry.asking("0" * 32),
        lambda: registry.create_enrolment_token("m", valid_for=timedelta(hours=1)),
    ):
        with pytest.raises(NeedsDatabaseError), registry.from_memory():
            ask()
    assert registry.change_token() == before


def test_other_threads_may_wait_meanwhile(registry: Registry) -> None:
    found: list[str] = []
    with registry.from_memory():
        thread = threading.Thread(target=lambda: found.append(registry.change_token()))
        thread.start()
        thread.join()
    assert found == [registry.change_token()]


def test_two_devices_in_one_moment_each_get_their_own_answer(api: Service) -> None:
    headers = [api.enrol(), api.enrol()]
    installed = {"installed_version": 3, "installed_hash": api.hash_of(3)}
    behind = {"installed_version": 1, "installed_hash": api.hash_of(1)}
    statuses: list[list[int]] = [[], []]

    def ask(number: int) -> None:
        for _ in range(5):
            statuses[number].append(api.check(headers[number], **(installed, behind)[number]).status_code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [[204] * 5, [200] * 5]
