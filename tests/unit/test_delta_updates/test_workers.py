"""Work on several threads: in order, bounded, and without anything left behind when it fails."""

import threading
from collections.abc import Iterator

import pytest

from delta_updates.workers import in_order


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order(workers: int) -> None:
    assert list(in_order(lambda number: number * number, range(40), workers=workers)) == [n * n for n in range(40)]
    assert list(in_order(str, [], workers=workers)) == []


def test_no_more_is_taken_than_is_worked_on() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield taken

    results = in_order(lambda item: item, items(), workers=3)
    assert next(results) == 1
    assert taken <= 4
    results.close()
    assert taken <= 4


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_reaches_the_caller_and_ends_the_threads(workers: int) -> None:
    def work(item: int) -> int:
        if item == 5:
            raise ValueError("five")
        return item

    results = in_order(work, range(100), workers=workers)
    with pytest.raises(ValueError, match="five"):
        list(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("delta")]
