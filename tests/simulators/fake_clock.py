"""A clock that only moves when someone sleeps, or when a test says so."""


class FakeClock:
    """Stands in for `client_sdk.pace.Clock`; `sleeps` keeps every wait."""

    def __init__(self, *, seconds_per_look: float = 0.0) -> None:
        self.now = 1_000.0
        self.sleeps: list[float] = []
        self._seconds_per_look = seconds_per_look

    def monotonic(self) -> float:
        self.now += self._seconds_per_look
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
