"""Sending one round's instructions out and collecting what comes back until the deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from server.federation.replies import Accepted, Refused, check_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    from flwr.serverapp import Grid

    from privacy import RoundInstructions


@dataclass(frozen=True)
class Exchange:
    """What one round brought: the contributions to average, and the rest with reasons."""

    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


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

    A device that answers twice, or under the id of one that already answered, counts once.
    """
    content = RecordDict(
        {
            "adapter": ArrayRecord({name: Array(tensor) for name, tensor in adapter.items()}),
            "instructions": ConfigRecord({**instructions.to_config()}),
        }
    )
    messages = [
        Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node, ttl=deadline_s + 60)
        for node in nodes
    ]
    waiting = set(grid.push_messages(messages))
    give_up = now() + deadline_s
    accepted: dict[str, Accepted] = {}
    refused: list[Refused] = []
    answered: set[int] = set()
    while waiting and now() < give_up:
        replies = list(grid.pull_messages(waiting))
        for reply in replies:
            waiting.discard(reply.metadata.reply_to_message_id)
            answered.add(reply.metadata.src_node_id)
            result = check_reply(reply, instructions=instructions, adapter=adapter, max_norm=max_norm)
            if isinstance(result, Accepted) and result.contribution.device_id in accepted:
                result = Refused(reply.metadata.src_node_id, "a second contribution under the same device id")
            if isinstance(result, Accepted):
                accepted[result.contribution.device_id] = result
            else:
                refused.append(result)
        if waiting and not replies:
            sleep(0.2)
    refused += [Refused(node, f"no reply within {deadline_s:.0f} s") for node in nodes if node not in answered]
    # Sorted, so that the average does not depend on who was fastest (float addition is not associative).
    return Exchange(tuple(accepted[key] for key in sorted(accepted)), tuple(refused))
