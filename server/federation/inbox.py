"""Messages to nodes and the replies to them: who was asked, who answered, and who must be left out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flwr.app import Message, MessageType, RecordDict

from server.federation.refusals import RefusalKind, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flwr.serverapp import Grid

# What reading hostile bytes raises; errors of the network are of other kinds and end the round as they always did.
_UNREADABLE: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError)


@dataclass
class Inbox:
    """Who was asked and has not answered yet, and who is left out, with the reason."""

    waiting: dict[str, int]  # message id to node id
    refused: list[Refused] = field(default_factory=list)

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


def replies_of(
    grid: Grid,
    contents: Mapping[int, RecordDict],
    *,
    deadline_s: float,
    take: Callable[[Inbox, Message], None],
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Inbox:
    """Send each node its content, and give each expected reply to `take`, until all are in or the deadline has passed.

    Who could not be asked, answered wrongly or did not answer is among the inbox's refused.
    """
    messages = [
        Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node, ttl=deadline_s + 60)
        for node, content in contents.items()
    ]
    inbox = Inbox(_push(grid, messages))
    unasked = set(contents) - set(inbox.waiting.values())
    give_up = now() + deadline_s
    while inbox.waiting and now() < give_up:
        replies = _pull(grid, inbox)
        for reply in replies:
            if inbox.expects(reply):
                take(inbox, reply)
        if inbox.waiting and not replies:
            sleep(0.2)
    inbox.refuse_all(unasked, RefusalKind.NO_REPLY, "could not be asked")
    inbox.refuse_all(inbox.waiting.values(), RefusalKind.NO_REPLY, f"no reply within {deadline_s:.0f} s")
    return inbox


def _push(grid: Grid, messages: Sequence[Message]) -> dict[str, int]:
    """Send the messages; who is asked, by message id. Flower gives None for a message that it could not send."""
    ids = list(grid.push_messages(messages))
    if len(ids) != len(messages):
        sent = set(ids)
        return {m.metadata.message_id: m.metadata.dst_node_id for m in messages if m.metadata.message_id in sent}
    return {sent_as: m.metadata.dst_node_id for sent_as, m in zip(ids, messages, strict=True) if sent_as}


def _pull(grid: Grid, inbox: Inbox) -> list[Message]:
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
