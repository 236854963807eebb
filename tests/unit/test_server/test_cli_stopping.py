"""A Ctrl-C that a library swallowed is raised again where the program waits."""

import os
import signal
from collections.abc import Iterator

import pytest

from server.cli import stopping


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stopping._asked.clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_was_swallowed_comes_again(number: signal.Signals) -> None:
    stopping.install()
    stopping.raise_if_asked()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)  # as lost as it can be: whoever runs now has it, and keeps it
    with pytest.raises(KeyboardInterrupt):
        stopping.raise_if_asked()
