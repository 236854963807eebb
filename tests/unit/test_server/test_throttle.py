import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import TooManyRequestsError
from server.throttle import TokenBuckets


class Seconds:
    def __init__(self) -> None:
        self.value = 1000.0

    def __call__(self) -> float:
        return self.value


def test_a_burst_is_let_through_then_so_many_a_minute() -> None:
    clock = Seconds()
    buckets = TokenBuckets(per_minute=6, burst=3, now=clock)
    assert [buckets.take("ada") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("ada") == pytest.approx(10)
    assert buckets.take("eve") == 0
    clock.value += 9
    with pytest.raises(TooManyRequestsError, match=r"Too many logins\. Try again in 1 s") as refused:
        buckets.require("ada", of="logins")
    assert refused.value.retry_after_s == 1
    clock.value += 1.5
    assert buckets.take("ada") == 0


def test_what_is_given_back_does_not_count() -> None:
    buckets = TokenBuckets(per_minute=1, burst=1, now=Seconds())
    for _ in range(5):
        buckets.require("ada", of="logins")
        buckets.give_back("ada")
    buckets.give_back("ada")
    buckets.give_back("nobody")
    assert buckets.take("ada") == 0
    assert buckets.take("ada") > 0


def test_zero_is_no_limit() -> None:
    buckets = TokenBuckets(per_minute=0, burst=0)
    assert not any(buckets.take("ada") for _ in range(1000))


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    buckets = TokenBuckets(per_minute=1, burst=1, max_keys=3, now=Seconds())
    for name in "abcd":
        assert buckets.take(name) == 0
    assert len(buckets._buckets) == 3
    assert buckets.take("d") > 0
    assert buckets.take("a") == 0


@given(steps=st.lists(st.floats(0, 100), max_size=60), per_minute=st.integers(1, 600), burst=st.integers(1, 20))
def test_never_more_than_the_burst_and_the_rate_allow(steps: list[float], per_minute: int, burst: int) -> None:
    clock = Seconds()
    buckets = TokenBuckets(per_minute=per_minute, burst=burst, now=clock)
    passed = 0
    for step in steps:
        clock.value += step
        wait = buckets.take("k")
        passed += wait == 0
        if wait:
            assert wait <= 60 / per_minute + 1e-6
    assert passed <= burst + sum(steps) * per_minute / 60 + 1e-6
