"""Which requests run now: a batch that others join between two steps (continuous batching, Yu et al. 2022, OSDI).

Pure bookkeeping: the model is a function from members to nothing, and memory is what members say they need at most.
First come, first served, so nobody waits behind somebody who came later.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from model.errors import ContextLengthError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Member(Protocol):
    """One request, as the scheduler sees it.

    Attributes:
        most_bytes: Memory it needs at most, until it is done.
        is_done: Whether it needs no further step.
    """

    most_bytes: int
    is_done: bool


MemberT = TypeVar("MemberT", bound=Member)


class Scheduler(Generic[MemberT]):
    """A queue and a running batch.

    Attributes:
        max_batch: Most members that run side by side; may be changed between steps.
        max_bytes: Most memory that all running members may ever need together.
    """

    def __init__(self, run: Callable[[Sequence[MemberT]], None], *, max_batch: int, max_bytes: int) -> None:
        """Begin with nothing.

        Args:
            run: Advances every given member by one step.
            max_batch: At least 1.
            max_bytes: See the class.
        """
        self.max_batch = max_batch
        self.max_bytes = max_bytes
        self._run = run
        self._queue: deque[MemberT] = deque()
        self._running: list[MemberT] = []

    @property
    def running(self) -> tuple[MemberT, ...]:
        """Members of the batch."""
        return tuple(self._running)

    @property
    def waiting(self) -> int:
        """Members in the queue."""
        return len(self._queue)

    @property
    def reserved_bytes(self) -> int:
        """Memory that the running members may need at most."""
        return sum(member.most_bytes for member in self._running)

    def submit(self, member: MemberT) -> None:
        """Queue a member; it joins the batch at the next step with room for it.

        Raises:
            ContextLengthError: It alone needs more memory than there is.
        """
        if member.most_bytes > self.max_bytes:
            raise ContextLengthError(
                f"the request may need {member.most_bytes} bytes of cache, {self.max_bytes} are allowed; shorten it, "
                "ask for fewer new tokens, or allow more"
            )
        self._queue.append(member)

    def withdraw(self, member: MemberT) -> None:
        """Forget a member, waiting or running; one that is gone already is no error."""
        for place in (self._queue, self._running):
            if member in place:
                place.remove(member)

    def step(self) -> bool:
        """Admit whom there is room for, advance everybody by one step, and let go of who is done.

        Returns:
            Whether there is anything left to do.
        """
        self._admit()
        if self._running:
            self._run(tuple(self._running))
            self._running = [member for member in self._running if not member.is_done]
        return bool(self._running or self._queue)

    def _admit(self) -> None:
        while self._queue and len(self._running) < max(1, self.max_batch):
            if self._queue[0].is_done:
                self._queue.popleft()
            elif self.reserved_bytes + self._queue[0].most_bytes <= self.max_bytes:
                self._running.append(self._queue.popleft())
            else:
                return  # overtaking it would let small requests starve a large one


def batch_limit(*, most: int, threads: int, cores: int) -> int:
    """How many requests run side by side: all that are allowed on a free machine, fewer as others take its cores.

    A step reads the weights once for everybody, so a batch costs little while cores are free to compute it.
    """
    return max(1, min(most, most * threads // max(1, cores)))
