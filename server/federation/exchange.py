"""Sending one round's instructions out and collecting what comes back until the deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from server.federation.inbox import Inbox, replies_of
from server.federation.refusals import RefusalKind, Refused
from server.federation.replies import Accepted, check_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    from flwr.app import Message
    from flwr.serverapp import Grid

    from privacy import RoundInstructions


@dataclass(frozen=True)
class Exchange:
    """What one round brought: the contributions to aggregate, and the rest with reasons."""

    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


@dataclass
class _Contributions:
    """What was made of the answers so far."""

    accepted: dict[str, Accepted] = field(default_factory=dict)  # by device id
    _events: set[str] = field(default_factory=set)

    def take(self, inbox: Inbox, result: Accepted | Refused) -> None:
        """Keep a contribution, unless its device or its privacy event has been counted in this round."""
        if isinstance(result, Refused):
            inbox.refused.append(result)
            return
        device, event = result.contribution.device_id, result.contribution.event_id
        if device in self.accepted:
            inbox.refuse(result.node_id, RefusalKind.DUPLICATE_DEVICE, "a second contribution under the same device id")
        elif event in self._events:
            inbox.refuse(result.node_id, RefusalKind.REPLAYED, "its privacy event is another device's of this round")
        else:
            self.accepted[device] = result
            self._events.add(event)


def exchange(
    grid: Grid,
    nodes: Sequence[int],
    *,
    instructions: RoundInstructions,
    adapter: Mapping[str, npt.NDArray[np.float32]],
    max_norm: float,
    deadline_s: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Exchange:
    """Ask `nodes` to train and gather their checked replies; whoever misses the deadline is left out.

    A node that answers twice, or a device that answers through two nodes, counts once.
    """
    content = RecordDict(
        {
            "adapter": ArrayRecord({name: Array(tensor) for name, tensor in adapter.items()}),
            "instructions": ConfigRecord({**instructions.to_config()}),
        }
    )
    found = _Contributions()

    def take(inbox: Inbox, reply: Message) -> None:
        found.take(inbox, check_reply(reply, instructions=instructions, adapter=adapter, max_norm=max_norm))

    inbox = replies_of(grid, dict.fromkeys(nodes, content), deadline_s=deadline_s, take=take, now=now, sleep=sleep)
    # Sorted, so that the aggregate does not depend on who was fastest (float addition is not associative).
    return Exchange(tuple(found.accepted[key] for key in sorted(found.accepted)), tuple(inbox.refused))
