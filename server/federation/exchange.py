"""Sending one round's instructions out and collecting what comes back until the deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from server.federation.refusals import RefusalKind, Refused
from server.federation.replies import Accepted, check_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    from flwr.serverapp import Grid

    from privacy import RoundInstructions

# What reading hostile bytes raises; errors of the network are of other kinds and end the round as they always did.
_UNREADABLE: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Exchange:
    """What one round brought: the contributions to aggregate, and the rest with reasons."""

    accepted: tuple[Accepted, ...]
    refused: tuple[Refused, ...]


@dataclass
class _Inbox:
    """Who was asked and has not answered yet, and what was made of the answers so far."""

    waiting: dict[str, int]  # message id to node id
    accepted: dict[str, Accepted] = field(default_factory=dict)  # by device id
    refused: list[Refused] = field(default_factory=list)
    _events: set[str] = field(default_factory=set)

    def take(self, result: Accepted | Refused) -> None:
        """Keep a contribution, unless its device or its privacy event has been counted in this round."""
        if isinstance(result, Refused):
            self.refused.append(result)
            return
        device, event = result.contribution.device_id, result.contribution.event_id
        if device in self.accepted:
            self.refuse(result.node_id, RefusalKind.DUPLICATE_DEVICE, "a second contribution under the same device id")
        elif event in self._events:
            self.refuse(result.node_id, RefusalKind.REPLAYED, "its privacy event is another device's of this round")
        else:
            self.accepted[device] = result
            self._events.add(event)

    def expects(self, reply: Message) -> bool:
        """Whether a reply is the first one, from the node that was asked; errors are written down here."""
        asked = self.waiting.get(reply.metadata.reply_to_message_id)
        source = reply.metadata.src_node_id
        if asked is None:
            self.refuse(source, RefusalKind.DUPLICATE_NODE, "answered again, or was not asked")
            return False
        # Flower writes some errors in its own name: those are the asked node's.
        if source != asked and not reply.has_error():
            self.refuse(source, RefusalKind.DUPLICATE_NODE, f"answered in the place of node {asked}")
            return False
        del self.waiting[reply.metadata.reply_to_message_id]
        if reply.has_error():
            self.refuse(asked, RefusalKind.DEVICE_ERROR, f"device error: {reply.error.reason or reply.error.code}")
        return not reply.has_error()

    def refuse_all(self, nodes: Iterable[int], kind: RefusalKind, reason: str) -> None:
        """Leave out nodes for one reason."""
        for node in sorted(nodes):
            self.refuse(node, kind, reason)

    def refuse(self, node_id: int, kind: RefusalKind, reason: str) -> None:
        """Leave out a reply."""
        self.refused.append(Refused(node_id, kind, reason))


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
    messages = [
        Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node, ttl=deadline_s + 60)
        for node in nodes
    ]
    inbox = _Inbox(_push(grid, messages))
    unasked = set(nodes) - set(inbox.waiting.values())
    give_up = now() + deadline_s
    while inbox.waiting and now() < give_up:
        replies = _pull(grid, inbox)
        for reply in replies:
            if inbox.expects(reply):
                inbox.take(check_reply(reply, instructions=instructions, adapter=adapter, max_norm=max_norm))
        if inbox.waiting and not replies:
            sleep(0.2)
    inbox.refuse_all(unasked, RefusalKind.NO_REPLY, "could not be asked")
    inbox.refuse_all(inbox.waiting.values(), RefusalKind.NO_REPLY, f"no reply within {deadline_s:.0f} s")
    # Sorted, so that the aggregate does not depend on who was fastest (float addition is not associative).
    return Exchange(tuple(inbox.accepted[key] for key in sorted(inbox.accepted)), tuple(inbox.refused))


def _push(grid: Grid, messages: Sequence[Message]) -> dict[str, int]:
    """Send the messages; who is asked, by message id. Flower gives None for a message that it could not send."""
    ids = list(grid.push_messages(messages))
    if len(ids) != len(messages):
        sent = set(ids)
        return {m.metadata.message_id: m.metadata.dst_node_id for m in messages if m.metadata.message_id in sent}
    return {sent_as: m.metadata.dst_node_id for sent_as, m in zip(ids, messages, strict=True) if sent_as}


def _pull(grid: Grid, inbox: _Inbox) -> list[Message]:
    """What has come in. A reply that Flower itself cannot read is refused, and the others are still heard."""
    try:
        return list(grid.pull_messages(set(inbox.waiting)))
    except _UNREADABLE:
        replies: list[Message] = []
        for message_id, node in list(inbox.waiting.items()):
            try:
                replies += grid.pull_messages({message_id})
            except _UNREADABLE as error:
                del inbox.waiting[message_id]
                reason = f"malformed reply: Flower cannot read it ({type(error).__name__})"
                inbox.refuse(node, RefusalKind.MALFORMED, reason)
        return replies
