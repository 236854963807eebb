"""How many threads: a pure decision, tested without a machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sdk.backends import LoadMeter, choose_threads, usable_cores
from client_sdk.backends.threads import MAX_THREADS, cores_of_limit


@pytest.mark.parametrize(
    ("cores", "load", "own_load", "threads"),
    [
        (2, 0.0, 0.0, 2),  # a free machine
        (2, 2.0, 2.0, 2),  # only this process works
        (2, 2.0, 0.0, 1),  # others have both cores: two threads would wait for each other
        (2, 3.1, 1.6, 1),
        (8, 3.0, 0.0, 5),
        (8, 20.0, 1.0, 1),
        (1, 0.0, 0.0, 1),
        (64, 0.0, 0.0, MAX_THREADS),
    ],
)
def test_only_free_cores_are_used(cores: int, load: float, own_load: float, threads: int) -> None:
    assert choose_threads(cores=cores, load=load, own_load=own_load) == threads


def test_a_close_decision_keeps_what_is() -> None:
    assert choose_threads(cores=4, load=1.6, own_load=0.0, current=3) == 3
    assert choose_threads(cores=4, load=1.6, own_load=0.0) == 2
    assert choose_threads(cores=4, load=3.0, own_load=0.0, current=3) == 1
    assert choose_threads(cores=2, load=0.0, own_load=0.0, current=8) == 2


@given(st.integers(1, 256), st.floats(0, 1000), st.floats(0, 1000), st.none() | st.integers(1, 64))
def test_it_is_always_possible(cores: int, load: float, own_load: float, current: int | None) -> None:
    threads = choose_threads(cores=cores, load=load, own_load=own_load, current=current)
    assert 1 <= threads <= min(cores, MAX_THREADS)


def test_a_containers_share_of_time_counts() -> None:
    assert cores_of_limit("150000 100000\n") == 1
    assert cores_of_limit("400000 100000\n") == 4
    with pytest.raises(ValueError, match="max"):
        cores_of_limit("max 100000\n")


def test_this_machine_can_be_read() -> None:
    assert 1 <= LoadMeter().threads() <= usable_cores()
