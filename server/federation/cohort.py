"""Who takes part in a round."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from server.errors import NotEnoughDevicesError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence


class NodeDirectory(Protocol):
    """The part of Flower's Grid that lists the connected devices."""

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the connected nodes."""
        ...


def wait_for_nodes(
    grid: NodeDirectory,
    *,
    minimum: int,
    timeout_s: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, ...]:
    """Wait until at least `minimum` devices are connected and return their node ids, sorted.

    Raises:
        NotEnoughDevicesError: `timeout_s` passed. Flower's own sampling would wait for ever.
    """
    give_up = now() + timeout_s
    while True:
        nodes = tuple(sorted(set(grid.get_node_ids())))
        if len(nodes) >= minimum:
            return nodes
        if now() >= give_up:
            raise NotEnoughDevicesError(
                f"{len(nodes)} devices are connected and {minimum} are needed; waited {timeout_s:.0f} s. "
                "Start more SuperNodes, or lower `quorum` and `cohort`."
            )
        sleep(0.5)


def draw_cohort(nodes: Sequence[int], *, size: int, rng: random.Random) -> tuple[int, ...]:
    """Draw `size` distinct devices uniformly (all of them when fewer are connected), sorted."""
    return tuple(sorted(rng.sample(list(nodes), min(size, len(nodes)))))


def draw_poisson(nodes: Sequence[int], *, probability: float, rng: random.Random) -> tuple[int, ...]:
    """Draw each device independently with the same probability, sorted; nobody at all is a possible draw.

    A device that is not connected would not answer if it were drawn, so it need not be asked: it is a dropout either
    way. Nobody is drawn in its place.
    """
    return tuple(sorted(node for node in nodes if rng.random() < probability))
