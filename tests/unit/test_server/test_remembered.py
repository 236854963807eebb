from server.api.remembered import Remembered


class Work:
    """Takes so many seconds on a clock of its own, and counts how often."""

    def __init__(self) -> None:
        self.time = 100.0
        self.done = 0

    def __call__(self) -> float:
        return self.time

    def work(self, seconds: float) -> tuple[int, ...]:
        self.time += seconds
        self.done += 1
        return (self.done,)


def test_a_dear_answer_is_kept_fifty_times_as_long_as_it_took() -> None:
    clock = Work()
    remembered: Remembered[tuple[int, ...]] = Remembered(now=clock)
    assert remembered.get("a", lambda: clock.work(2)) == (1,)
    clock.time += 99
    assert remembered.get("a", lambda: clock.work(2)) == (1,)
    assert remembered.get("b", lambda: clock.work(2)) == (2,)
    clock.time += 1
    assert remembered.get("a", lambda: clock.work(2)) == (3,)


def test_a_cheap_answer_is_always_new() -> None:
    clock = Work()
    remembered: Remembered[tuple[int, ...]] = Remembered(now=clock)
    assert [remembered.get("a", lambda: clock.work(0)) for _ in range(3)] == [(1,), (2,), (3,)]
